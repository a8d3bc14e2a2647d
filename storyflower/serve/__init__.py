"""The service: HTTP requests → answers of a classifier, computed together where they wait."""
