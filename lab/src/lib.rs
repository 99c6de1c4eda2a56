//! Many nodes on one machine, in network namespaces.
