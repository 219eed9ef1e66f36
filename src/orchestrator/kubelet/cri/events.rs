//! containerd's own event stream: the wake-up that CRI's GetContainerEvents would be (containerd 1.6 does not implement it).

use super::Runtime;
use super::messages::{Envelope, SubscribeRequest, TaskEvent, TaskExit};
use prost::Message;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What happened in the runtime, reduced to what a pod's worker must know.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// The main process of this container (or sandbox) ended; CRI's own state follows within milliseconds.
    Exited(String),
    /// The kernel killed a process of this container for its memory limit.
    OutOfMemory(String),
    /// The stream was (re)opened: anything may have happened meanwhile.
    Reconnected,
}

/// Reads the stream until cancelled; reconnects when containerd restarts.
pub async fn follow(runtime: Runtime, out: mpsc::UnboundedSender<Happening>, cancel: CancellationToken) {
    const SHORTEST: Duration = Duration::from_millis(50);
    let mut pause = SHORTEST;
    while !cancel.is_cancelled() {
        match cancel.run_until_cancelled(read(&runtime, &out)).await {
            Some(Ok(())) => pause = SHORTEST,
            Some(Err(refusal)) => tracing::warn!(%refusal, "could not follow the container runtime's events"),
            None => return,
        }
        // At most one attempt every 2 s while containerd is away; its supervisor is at it.
        cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// An error means that the stream could not be opened; one that ends later is no error.
async fn read(runtime: &Runtime, out: &mpsc::UnboundedSender<Happening>) -> Result<(), super::Refusal> {
    let mut grpc = tonic::client::Grpc::new(runtime.channel.clone());
    grpc.ready().await.map_err(|error| super::Refusal { code: tonic::Code::Unavailable, message: super::describe(&error) })?;
    let topics = ["/tasks/exit", "/tasks/oom"];
    let filters = topics.iter().map(|topic| format!("namespace==k8s.io,topic==\"{topic}\"")).collect();
    let path = "/containerd.services.events.v1.Events/Subscribe".parse().expect("a constant path");
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, Envelope>::default();
    let mut stream = grpc.server_streaming(tonic::Request::new(SubscribeRequest { filters }), path, codec).await?.into_inner();
    let _ = out.send(Happening::Reconnected);
    while let Ok(Some(envelope)) = stream.message().await {
        if let Some(happening) = understand(&envelope)
            && out.send(happening).is_err()
        {
            break;
        }
    }
    Ok(())
}

fn understand(envelope: &Envelope) -> Option<Happening> {
    let body = envelope.event.as_ref()?.value.as_slice();
    if envelope.topic == "/tasks/exit" {
        let exit = TaskExit::decode(body).ok()?;
        // The end of an exec'd process (a probe) is nobody's business.
        return (exit.process == exit.container).then_some(Happening::Exited(exit.container));
    }
    TaskEvent::decode(body).ok().map(|event| Happening::OutOfMemory(event.container))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::kubelet::cri::messages::Any;

    fn exit(container: &str, process: &str) -> Envelope {
        let value = TaskExit { container: container.into(), process: process.into() }.encode_to_vec();
        let event = Some(Any { type_url: "containerd.events.TaskExit".into(), value });
        Envelope { namespace: "k8s.io".into(), topic: "/tasks/exit".into(), event }
    }

    #[test]
    fn the_end_of_a_probe_command_is_not_the_end_of_its_container() {
        assert_eq!(understand(&exit("c1", "c1")), Some(Happening::Exited("c1".into())));
        assert_eq!(understand(&exit("c1", "probe-7")), None);
    }
}
