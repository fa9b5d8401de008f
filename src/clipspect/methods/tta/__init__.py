"""Test-time adaptation: small layers trained on one image each, a batch of images at once."""
