//! Services as nftables rules: the table is pure, the write at the edge.
