"""What `make torture` does to the project: kills, damaged files, full disks, two at once."""
