"""The example shop: two services on the mesh."""
