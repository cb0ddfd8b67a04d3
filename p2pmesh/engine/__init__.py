"""The model: knows neither the mesh nor an event loop."""
