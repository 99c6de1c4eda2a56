//! Families and address ranges.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// IPv4 or IPv6; everything that differs between them is decided by this parameter, nowhere by a second code path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// One value a family, each of which may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerFamily<T> {
    pub v4: Option<T>,
    pub v6: Option<T>,
}

// === impl Family ===

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// `ipv4` or `ipv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// The one that it is not.
    pub fn other(self) -> Family {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }

    /// An address's family.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// A range's family.
    pub fn of_net(net: &IpNet) -> Family {
        Family::of(net.addr())
    }

    /// Length of an address in bits.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// All addresses: the destination of a default route.
    pub fn everything(self) -> IpNet {
        match self {
            Family::V4 => IpNet::new_assert(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
            Family::V6 => IpNet::new_assert(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0),
        }
    }

    /// The range that holds this one address.
    pub fn host_net(address: IpAddr) -> IpNet {
        IpNet::from(address)
    }
}

/// Whether two ranges have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl PerFamily ===

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        PerFamily { v4: None, v6: None }
    }
}

impl<T> PerFamily<T> {
    /// The family's value.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Sets the family's value.
    pub fn set(&mut self, family: Family, value: T) {
        match family {
            Family::V4 => self.v4 = Some(value),
            Family::V6 => self.v6 = Some(value),
        }
    }

    /// The values that are there, with their families.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| self.get(family).map(|value| (family, value)))
    }
}

impl PerFamily<IpAddr> {
    /// The first address of each family.
    pub fn first_of(addresses: impl IntoIterator<Item = IpAddr>) -> PerFamily<IpAddr> {
        let mut firsts = PerFamily { v4: None, v6: None };
        for address in addresses {
            let family = Family::of(address);
            if firsts.get(family).is_none() {
                firsts.set(family, address);
            }
        }
        firsts
    }
}
