"""Read and write spreadsheets safely: xlsx and csv."""
