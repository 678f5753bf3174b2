"""tpn_ray: train, tune and apply Temporal Pyramid Networks on videos in object storage, on a Ray cluster."""

__version__ = "0.1.0"
