"""The Gaussian filter that the dense CRF and the dense energy loss share, and both of them."""
