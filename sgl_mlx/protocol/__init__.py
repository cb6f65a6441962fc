"""Wire formats that clients and servers share."""
