"""Test-time adaptation: small layers trained on one image alone, a batch of images at once."""
