"""Distributed scoring over processes and machines, from disks and object storage."""
