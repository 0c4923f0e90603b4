"""What every floor stands on: errors, storage, hashing, leases; and the doors to MLflow and Ray jobs."""
