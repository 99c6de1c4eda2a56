//! Door: netlink, nftables, namespaces, sysctls, conntrack.
