#!/bin/sh
# The yardstick of `cargo xtask bench path`: by hand, with ip and nft, the chain of devices and namespaces that Tartan
# makes for pods on two nodes of one L2. Whoever doubts a ratio finds here what it is a ratio to.
#
#   a1, a2 ── node n1 ── eth0 ══ bridge br0 ══ eth0 ── node n2 ── b1
#
#   yardstick.sh up PREFIX host-gw|vxlan nat|bare    makes namespaces PREFIX-u -n1 -n2 -a1 -a2 -b1
#   yardstick.sh down PREFIX                         removes them
#
# nat: conntrack and one masquerade rule on each node, as Tartan has. bare: no nft table, so no conntrack.
# The addresses are those of a lab; nothing here is connected to anything outside.
set -eu

prefix=$2
in_ns() { ns=$1; shift; ip netns exec "$prefix-$ns" "$@"; }

underlay() {
    ip netns add "$prefix-u"
    in_ns u ip link add br0 type bridge forward_delay 0 mcast_snooping 0
    in_ns u ip link set br0 up
}

# node NUMBER
node() {
    ip netns add "$prefix-n$1"
    in_ns "n$1" ip link set lo up
    in_ns u ip link add "n$1" type veth peer name eth0 netns "$prefix-n$1"
    in_ns u ip link set "n$1" master br0 up
    in_ns "n$1" ip address add "172.30.0.$1/24" dev eth0
    in_ns "n$1" ip link set eth0 up
    in_ns "n$1" sh -c "echo 1 > /proc/sys/net/ipv4/ip_forward"
}

# pod NAME NODE ADDRESS MTU: routed, neighbours permanent on both ends
pod() {
    ip netns add "$prefix-$1"
    in_ns "$1" ip link set lo up
    in_ns "n$2" ip link add "$1" mtu "$4" type veth peer name eth0 netns "$prefix-$1" mtu "$4"
    in_ns "n$2" ip link set "$1" up
    in_ns "$1" ip address add "$3/32" dev eth0
    in_ns "$1" ip link set eth0 up
    node_mac=$(in_ns "n$2" cat "/sys/class/net/$1/address")
    pod_mac=$(in_ns "$1" cat /sys/class/net/eth0/address)
    in_ns "$1" ip neigh add 169.254.1.1 lladdr "$node_mac" dev eth0 nud permanent
    in_ns "$1" ip route add 169.254.1.1 dev eth0 scope link
    in_ns "$1" ip route add default via 169.254.1.1 dev eth0
    in_ns "n$2" ip neigh add "$3" lladdr "$pod_mac" dev "$1" nud permanent
    in_ns "n$2" ip route add "$3" dev "$1" scope link
}

# host_gw NODE PEER
host_gw() { in_ns "n$1" ip route add "10.244.$2.0/24" via "172.30.0.$2"; }

# vxlan NODE PEER
vxlan() {
    in_ns "n$1" ip link add vx0 address "02:00:00:00:00:0$1" mtu 1450 type vxlan id 1 dstport 8472 \
        local "172.30.0.$1" nolearning
    in_ns "n$1" ip link set vx0 up
    in_ns "n$1" ip neigh add "10.244.$2.1" lladdr "02:00:00:00:00:0$2" dev vx0 nud permanent
    in_ns "n$1" bridge fdb add "02:00:00:00:00:0$2" dev vx0 dst "172.30.0.$2"
    in_ns "n$1" ip route add "10.244.$2.0/24" via "10.244.$2.1" dev vx0 onlink
}

nat() {
    in_ns "n$1" nft -f - <<RULES
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade fully-random
    }
}
RULES
}

up() {
    fabric=$1
    filter=$2
    case $fabric in
        host-gw) mtu=1500 connect=host_gw ;;
        vxlan) mtu=1450 connect=vxlan ;;
        *) echo "yardstick.sh: no fabric '$fabric'; there are host-gw and vxlan" >&2; exit 2 ;;
    esac
    underlay
    node 1
    node 2
    pod a1 1 10.244.1.2 "$mtu"
    pod a2 1 10.244.1.3 "$mtu"
    pod b1 2 10.244.2.2 "$mtu"
    "$connect" 1 2
    "$connect" 2 1
    case $filter in
        nat) nat 1; nat 2 ;;
        bare) ;;
        *) echo "yardstick.sh: no filter '$filter'; there are nat and bare" >&2; exit 2 ;;
    esac
}

case $1 in
    up) up "$3" "$4" ;;
    down) for ns in a1 a2 b1 n1 n2 u; do ip netns delete "$prefix-$ns" 2>/dev/null || true; done ;;
    *) echo "yardstick.sh: no command '$1'; there are up and down" >&2; exit 2 ;;
esac
