"""One model of every family with real tensors: outputs, lesions and path gradients, against the model itself."""
