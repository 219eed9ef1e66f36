//! The load balancer's sockets: accepts, connects to whom the pool names, copies both ways, and checks health.

use super::model::{Listener, Pool};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Below the interval, so that checks never pile up; machines are one hop away.
const CHECK_TIMEOUT: Duration = Duration::from_millis(400);
/// A frozen machine answers nothing: move on while the client still waits. Longer than one lost SYN would need on one hop.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1200);
/// Per direction and connection: all the memory a slow reader can take.
const BUFFER_BYTES: usize = 16 << 10;
const MOST_CONNECTIONS: usize = 4096;
/// What was sent and not acknowledged for so long is lost with its machine.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Dropping it ends its listeners; established connections go on until their ends close.
#[derive(Default)]
pub struct Balancer {
    listeners: Mutex<BTreeMap<SocketAddr, Serving>>,
}

struct Serving {
    pool: Arc<Mutex<Pool>>,
    tasks: [AbortHandle; 2],
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Balancer {
    /// Serves exactly these listeners from now on; on an error what was served before still is. Must be called inside the runtime (and
    /// the network namespace) that shall own the sockets.
    pub fn apply(&self, wish: &[Listener]) -> io::Result<()> {
        let mut listeners = self.listeners.lock();
        let new = wish.iter().filter(|listener| !listeners.contains_key(&listener.address));
        let new =
            new.map(|listener| Serving::start(listener).map(|serving| (listener.address, serving))).collect::<io::Result<Vec<_>>>()?;
        listeners.retain(|address, _| wish.iter().any(|listener| listener.address == *address));
        listeners.extend(new);
        for listener in wish {
            listeners[&listener.address].pool.lock().set(&listener.backends);
        }
        Ok(())
    }

    /// Listener, backend's name, whether it is healthy.
    pub fn health(&self) -> Vec<(SocketAddr, String, bool)> {
        let listeners = self.listeners.lock();
        let of = |(address, serving): (&SocketAddr, &Serving)| {
            serving.pool.lock().backends().map(|(backend, up)| (*address, backend.name.clone(), up)).collect::<Vec<_>>()
        };
        listeners.iter().flat_map(of).collect()
    }
}

impl Serving {
    fn start(listener: &Listener) -> io::Result<Serving> {
        let pool = Arc::new(Mutex::new(Pool::default()));
        pool.lock().set(&listener.backends);
        let socket = tokio::net::TcpSocket::new_v4()?;
        // A restarted balancer must not wait for its predecessor's closed connections.
        socket.set_reuseaddr(true)?;
        socket.bind(listener.address)?;
        let socket = socket.listen(1024)?;
        let tasks = [tokio::spawn(accept(socket, pool.clone())).abort_handle(), tokio::spawn(check(pool.clone())).abort_handle()];
        Ok(Serving { pool, tasks })
    }
}

async fn accept(socket: TcpListener, pool: Arc<Mutex<Pool>>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match socket.accept().await {
            Ok((client, _)) => {
                let pool = pool.clone();
                tokio::spawn(async move {
                    carry(client, &pool).await;
                    drop(place);
                });
            }
            // Out of descriptors, or the client gave up already.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// One client's connection from end to end.
async fn carry(mut client: TcpStream, pool: &Mutex<Pool>) {
    let Some((address, mut backend)) = connect(pool).await else {
        // A reset says "failed" where an orderly end would say "empty answer".
        let _ = client.set_zero_linger();
        return;
    };
    for stream in [&client, &backend] {
        let _ = stream.set_nodelay(true);
        give_up_on_silence(stream);
    }
    pool.lock().opened(address);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_backend, mut to_backend) = backend.split();
    let _ = tokio::try_join!(pump(&mut from_client, &mut to_backend), pump(&mut from_backend, &mut to_client));
    pool.lock().closed(address);
}

/// One direction until its sender has finished; the other goes on, as either side may finish sending and still receive. A receiver
/// that does not want more (a server that refuses a request early) ends this direction only: its answer must still get through.
async fn pump(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            let _ = to.shutdown().await;
            return Ok(());
        }
    }
}

async fn connect(pool: &Mutex<Pool>) -> Option<(SocketAddr, TcpStream)> {
    let mut tried = Vec::new();
    loop {
        let address = pool.lock().pick(&tried)?;
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Some((address, stream)),
            _ => pool.lock().refused(address),
        }
        tried.push(address);
    }
}

async fn check(pool: Arc<Mutex<Pool>>) {
    let mut ticks = interval(CHECK_INTERVAL);
    // After a pause of the whole process one check is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let started: Instant = ticks.tick().await;
        let addresses: Vec<SocketAddr> = pool.lock().backends().map(|(backend, _)| backend.address).collect();
        let answers = futures::future::join_all(addresses.iter().map(|address| timeout(CHECK_TIMEOUT, TcpStream::connect(address)))).await;
        // Checks that ran long because this process stood still say nothing about the backends.
        let stood_still = started.elapsed() > CHECK_INTERVAL * 2;
        for (address, answer) in addresses.into_iter().zip(answers) {
            // Closed in order: a reset would be an error in the log of every server behind us, twice a second.
            let answered = matches!(answer, Ok(Ok(_)));
            if answered || !stood_still {
                pool.lock().checked(address, answered);
            }
        }
    }
}

fn give_up_on_silence(stream: &TcpStream) {
    let set = |level, name, value: libc::c_int| {
        // SAFETY: the descriptor is open, the value is a C int as its length says. A refusal only costs the early end.
        unsafe {
            libc::setsockopt(stream.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t)
        };
    };
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 30);
    set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 10);
    set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNACKNOWLEDGED.as_millis() as libc::c_int);
}

#[cfg(test)]
mod tests {
    use super::super::Backend;
    use super::*;

    /// Answers each client with its own name after the client has finished sending: needs half-close to work.
    async fn backend(name: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut asked = String::new();
                    let _ = stream.read_to_string(&mut asked).await;
                    let _ = stream.write_all(format!("{name} {asked}").as_bytes()).await;
                });
            }
        });
        address
    }

    async fn unused_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    fn listener(address: SocketAddr, backends: &[SocketAddr]) -> Listener {
        let backends = backends.iter().map(|address| Backend { name: address.to_string(), address: *address }).collect();
        Listener { address, backends }
    }

    async fn ask(address: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_refusing_backend_costs_no_request() {
        let (front, dead, alive) = (unused_address().await, unused_address().await, backend("alive").await);
        let balancer = Balancer::default();
        balancer.apply(&[listener(front, &[dead, alive])]).unwrap();
        for _ in 0..4 {
            assert_eq!(ask(front).await.unwrap(), "alive hello");
        }
        let health = balancer.health();
        assert_eq!(
            health.iter().map(|(_, name, up)| (name.as_str(), *up)).collect::<Vec<_>>(),
            [(dead.to_string().as_str(), false), (alive.to_string().as_str(), true)]
        );
    }

    #[tokio::test]
    async fn an_answer_to_a_request_that_is_refused_unread_gets_through() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (front, refusing) = (unused_address().await, server.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                let _ = stream.write_all(b"too much").await;
                let _ = stream.shutdown().await;
            }
        });
        let balancer = Balancer::default();
        balancer.apply(&[listener(front, &[refusing])]).unwrap();
        for _ in 0..20 {
            let mut client = TcpStream::connect(front).await.unwrap();
            let _ = client.write_all(&[0; 1 << 20]).await;
            let mut answer = [0; 8];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"too much");
        }
    }

    #[tokio::test]
    async fn with_nobody_behind_it_a_client_is_reset_and_served_as_soon_as_somebody_is() {
        let (front, alive) = (unused_address().await, backend("late").await);
        let balancer = Balancer::default();
        balancer.apply(&[listener(front, &[])]).unwrap();
        assert!(ask(front).await.is_err());
        balancer.apply(&[listener(front, &[alive])]).unwrap();
        assert_eq!(ask(front).await.unwrap(), "late hello");
    }

    #[tokio::test]
    async fn an_established_connection_survives_a_change_and_the_end_of_its_listener() {
        let (front, other, old, new) = (unused_address().await, unused_address().await, backend("old").await, backend("new").await);
        let balancer = Balancer::default();
        balancer.apply(&[listener(front, &[old])]).unwrap();
        let mut open = TcpStream::connect(front).await.unwrap();
        open.write_all(b"still ").await.unwrap();
        // The connection is in the old backend's hands only once the balancer has accepted it.
        assert_eq!(ask(front).await.unwrap(), "old hello");
        balancer.apply(&[listener(other, &[new])]).unwrap();
        assert_eq!(ask(other).await.unwrap(), "new hello");
        assert!(TcpStream::connect(front).await.is_err());
        open.write_all(b"here").await.unwrap();
        open.shutdown().await.unwrap();
        let mut answer = String::new();
        open.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "old still here");
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_and_leaves_the_old_listeners_alone() {
        let (front, alive) = (unused_address().await, backend("alive").await);
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let balancer = Balancer::default();
        balancer.apply(&[listener(front, &[alive])]).unwrap();
        assert!(balancer.apply(&[listener(taken.local_addr().unwrap(), &[alive])]).is_err());
        assert_eq!(ask(front).await.unwrap(), "alive hello");
    }
}
