"""Every model of timm and torchvision: what is detected, against what their code declares."""
