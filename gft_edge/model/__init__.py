"""The network: GALA as tensor functions, GFT over a timm backbone, its variants, weights and cost."""
