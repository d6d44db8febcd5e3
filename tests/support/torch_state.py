"""What torch keeps of its own state: hooks on all modules, and the modes of a thread."""

import torch


def global_hooks():
    """Return what torch keeps of hooks on all modules, by the name of its registry."""
    registries = vars(torch.nn.modules.module)
    return {
        name: dict(held) for name, held in registries.items() if name.startswith("_global_") and isinstance(held, dict)
    }


def thread_modes():
    """Return what torch keeps of the modes of this thread."""
    nesting = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)],
        "cache of autocast": torch.is_autocast_cache_enabled(),
        "nesting of autocast": nesting,
    }
