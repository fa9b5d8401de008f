"""Scale: the same detector over many processes and machines, reading from disks and object storage."""
