"""What this machine can do: doctor, bench, footprint."""
