"""What a server of processes does once before it forks them: it imports, and captures the network of `killed_studies`.

One thread, since threads do not outlive a fork.
"""

import captum.attr  # noqa: F401 - which a study would import
import torch

torch.set_num_threads(1)

from killed_studies import network  # noqa: E402 - after the number of threads is set

network()
