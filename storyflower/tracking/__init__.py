"""A copy of each run in MLflow. The files in reports/ remain the source of truth."""
