"""The mirror of a run in MLflow. The files in reports/ are the truth."""
