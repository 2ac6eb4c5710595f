//! The metadata of the cluster: a log of typed records and the image that it makes.
