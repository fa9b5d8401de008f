"""Test-time adaptation: small layers trained on one photograph alone, a batch of photographs at once."""
