"""Kills, outages, full disks, hostile files, many at once: nothing is lost, nothing is let in."""
