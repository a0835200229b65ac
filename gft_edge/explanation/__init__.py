"""What a network looks at, seen in the exported artifact itself or in PyTorch, and what that is worth."""
