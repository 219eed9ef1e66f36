//! Addresses that this process reaches only through a connection it holds: a port of its own leads to each.

use crate::error::{Error, Result};
use crate::remote::Connection;
use openssh::ForwardType;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

static WAYS: Mutex<BTreeMap<SocketAddr, SocketAddr>> = Mutex::new(BTreeMap::new());

/// Where to connect for this address: to itself, unless a way was opened to it.
pub fn through(to: SocketAddr) -> SocketAddr {
    WAYS.lock().get(&to).copied().unwrap_or(to)
}

/// Opens a way to `to`, an address as the machine of the connection sees it, unless there is one that works.
pub async fn open(connection: &Connection, to: SocketAddr) -> Result<()> {
    let known = WAYS.lock().get(&to).copied();
    if let Some(way) = known
        && tokio::net::TcpStream::connect(way).await.is_ok()
    {
        return Ok(());
    }
    let failed = || format!("could not open a way to {to} through {}", connection.machine);
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let way = free().map_err(|error| Error::host(failed()).because(error))?;
    connection
        .session
        .request_port_forward(ForwardType::Local, way, to)
        .await
        .map_err(|error| Error::host(failed()).because(error).hint("sshd there must allow TCP forwarding (AllowTcpForwarding)"))?;
    WAYS.lock().insert(to, way);
    Ok(())
}
