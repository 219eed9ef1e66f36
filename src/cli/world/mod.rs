//! What the composition roots share: the doors of one cluster and what is desired behind them, outside and inside alike.

pub mod blueprint_door;
pub mod host_door;
pub mod hosts;
pub mod images;
pub mod nodes;
pub mod outside;
pub mod recover;
pub mod served;
pub mod waiting;
