"""From prompts, images and numbers to what the network is conditioned on (paper section 4, App. D.2 to D.6)."""

from model.conditioning.conditioning import Conditioning, ConditioningError, drop

__all__ = ["Conditioning", "ConditioningError", "drop"]
