//! The thread that lives in the cluster's network: its sockets (load balancers, the API for the loop) are in that namespace.

use super::fabric;
use super::layout::Layout;
use crate::error::{Context, Error, Kind, Result};
use parking_lot::Mutex;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What is run on every connection to the gateway's API port.
pub type Serve = Arc<dyn Fn(tokio::net::TcpStream) + Send + Sync>;

pub struct Network {
    layout: Layout,
    serve: Mutex<Option<Serve>>,
    inside: Mutex<Option<Inside>>,
}

struct Inside {
    runtime: Handle,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Network {
    pub fn new(layout: Layout) -> Network {
        Network { layout, serve: Mutex::default(), inside: Mutex::default() }
    }

    /// Before `open`: who answers on the gateway's address.
    pub fn serve_with(&self, serve: Serve) {
        *self.serve.lock() = Some(serve);
    }

    /// Starts the thread, unless it runs.
    pub async fn open(&self, api: SocketAddr) -> Result<()> {
        let failed = || format!("could not enter the network {}", self.layout.link());
        let mut inside = self.inside.lock();
        if inside.is_some() {
            return Ok(());
        }
        let (namespace, serve) = (self.layout.namespace(), self.serve.lock().clone());
        let ((stop, stopped), (end, ended)) = (oneshot::channel(), oneshot::channel());
        let (entered, handle) = std::sync::mpsc::channel();
        let work = move || {
            let begin = || {
                fabric::enter(&namespace)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let listener = runtime.block_on(tokio::net::TcpListener::bind(api))?;
                std::io::Result::Ok((runtime, listener))
            };
            match begin() {
                Err(error) => drop(entered.send(Err(error))),
                Ok((runtime, listener)) => {
                    let _ = entered.send(Ok(runtime.handle().clone()));
                    runtime.spawn(accept(listener, serve));
                    let _ = runtime.block_on(stopped);
                    drop(runtime);
                    let _ = end.send(());
                }
            }
        };
        std::thread::Builder::new().name("fabric".into()).spawn(work).or_fail(Kind::Host, failed)?;
        let runtime = handle.recv().or_fail(Kind::Internal, failed)?.or_fail(Kind::Host, failed)?;
        *inside = Some(Inside { runtime, stop, ended });
        Ok(())
    }

    /// Ends the thread and with it every socket in the namespace.
    pub async fn close(&self) {
        let inside = self.inside.lock().take();
        if let Some(inside) = inside {
            let _ = inside.stop.send(());
            let _ = inside.ended.await;
        }
    }

    /// Runs something in there.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let runtime = self.inside.lock().as_ref().map(|inside| inside.runtime.clone());
        let runtime = runtime.ok_or_else(|| Error::provider("the cluster has no network"))?;
        runtime.spawn(work).await.or_fail(Kind::Internal, || "a task in the cluster's network died")
    }
}

async fn accept(listener: tokio::net::TcpListener, serve: Option<Serve>) {
    loop {
        match (listener.accept().await, &serve) {
            (Ok((stream, _)), Some(serve)) => serve(stream),
            (Ok(_), None) => {}
            (Err(_), _) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
}
