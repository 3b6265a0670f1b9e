"""What the mesh tells others about its calls."""
