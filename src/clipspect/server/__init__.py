"""Surfaces over the network: a page for people, a service for machines. Both call the one engine."""
