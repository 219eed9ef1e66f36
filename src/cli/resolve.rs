//! `kprov resolve NAME`: asks this node's cluster DNS; how `up` knows that names answer, where only a node can ask. Hidden.

use super::terminal;
use crate::error::{Error, Result};
use crate::orchestrator::config::DNS_ADDRESS;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

/// One node answers itself in well under a millisecond; a lost packet is asked again.
const PATIENCE: Duration = Duration::from_millis(200);
const TRIES: usize = 25;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A fully qualified name
    name: String,
}

pub fn run(args: &Args) -> Result<()> {
    let failed = || format!("could not resolve {}", args.name);
    let name = Name::from_str(&args.name).map_err(|error| Error::input(failed()).because(error))?;
    let mut question = Message::new(std::process::id() as u16, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, RecordType::A));
    question.metadata.recursion_desired = true;
    let bytes = question.to_vec().map_err(|error| Error::internal(failed()).because(error))?;
    let server: IpAddr = DNS_ADDRESS.parse().map_err(|error| Error::internal(failed()).because(error))?;
    let mut last = Error::timeout(failed());
    for _ in 0..TRIES {
        match ask(&bytes, SocketAddr::new(server, 53)) {
            Ok(answer) if answer.metadata.response_code == ResponseCode::NoError && !answer.answers.is_empty() => {
                return terminal::print(answer.answers.iter().map(|record| format!("{}\n", record.data)).collect::<String>());
            }
            Ok(answer) => last = Error::timeout(failed()).because(format!("the answer was {}", answer.metadata.response_code)),
            Err(error) => last = Error::timeout(failed()).because(error),
        }
        // Refused at once: the server is not there yet. Asking without a pause would only burn the node's processor.
        std::thread::sleep(PATIENCE / 10);
    }
    Err(last)
}

fn ask(question: &[u8], server: SocketAddr) -> std::io::Result<Message> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(question)?;
    let mut answer = [0; 4096];
    let length = socket.recv(&mut answer)?;
    Message::from_vec(&answer[..length]).map_err(std::io::Error::other)
}
