//! Bytes in, bytes out: requests read, answers written so that they fit, all without touching the network.

use super::answer::{Answer, answer, authority};
use super::index::Index;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};

/// What is sent over UDP at most: larger datagrams are cut in pieces on common networks, and pieces are lost (dnsflagday.net/2020).
const MOST_UDP_BYTES: u16 = 1232;
/// Every resolver takes this much (RFC 1035).
const LEAST_UDP_BYTES: u16 = 512;

/// What to do with a request.
#[derive(Debug)]
pub enum Step {
    Reply(Vec<u8>),
    /// Send the request's own bytes to somebody who knows, and the reply's back.
    Forward,
    /// Ask somebody about `query` and put its records behind `aliases`.
    Resolve {
        request: Box<Message>,
        query: Query,
        aliases: Vec<Record>,
    },
    /// No request at all: silence.
    Ignore,
}

/// Handles one request. `udp` bounds the answer's size.
pub fn handle(index: &Index, bytes: &[u8], udp: bool) -> Step {
    // An answer to an answer would start a storm between two servers.
    if bytes.len() < 12 || bytes[2] & 0x80 != 0 {
        return Step::Ignore;
    }
    let Ok(request) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        return reply(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), LEAST_UDP_BYTES);
    };
    let limit = size_limit(&request, udp);
    let mut response = start(&request);
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        response.metadata.response_code = ResponseCode::BADVERS;
        return reply(&response, limit);
    }
    let [query] = request.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return reply(&response, limit);
    };
    if request.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return reply(&response, limit);
    }
    if query.query_class() != DNSClass::IN {
        response.metadata.response_code = ResponseCode::Refused;
        return reply(&response, limit);
    }
    let found = answer(index, query.name(), query.query_type());
    response.metadata.authoritative = true;
    match found {
        Answer::Records { mut answers, additionals } => {
            // Clients mostly take the first address: each gets another one first.
            let same = answers.first().is_some_and(|first| answers.iter().all(|record| record.record_type() == first.record_type()));
            if same {
                let turn = usize::from(request.metadata.id) % answers.len();
                answers.rotate_left(turn);
            }
            response.add_answers(answers);
            response.add_additionals(additionals);
        }
        Answer::NoData => {
            response.add_authorities(authority(index));
        }
        Answer::NoSuchName => {
            response.metadata.response_code = ResponseCode::NXDomain;
            response.add_authorities(authority(index));
        }
        Answer::NotReady => {
            response.metadata.authoritative = false;
            response.metadata.response_code = ResponseCode::ServFail;
        }
        Answer::Elsewhere { aliases, .. } if aliases.is_empty() => return Step::Forward,
        Answer::Elsewhere { name, aliases } => {
            let query = Query::query(name, query.query_type());
            return Step::Resolve { request: Box::new(request), query, aliases };
        }
    }
    reply(&response, limit)
}

/// The answer when nobody could be asked.
pub fn failure(bytes: &[u8]) -> Option<Vec<u8>> {
    let request = Message::from_vec(bytes).ok()?;
    let mut response = start(&request);
    response.metadata.response_code = ResponseCode::ServFail;
    response.to_vec().ok()
}

/// The answer to an alias: what leads to the name, then what others said about it (nothing when they did not answer).
pub fn resolved(request: &Message, aliases: Vec<Record>, upstream: Option<&[u8]>, udp: bool) -> Option<Vec<u8>> {
    let mut response = start(request);
    response.add_answers(aliases);
    if let Some(message) = upstream.and_then(|bytes| Message::from_vec(bytes).ok()) {
        if message.metadata.response_code == ResponseCode::NXDomain {
            response.metadata.response_code = ResponseCode::NXDomain;
        }
        response.add_answers(message.answers);
        response.add_authorities(message.authorities);
    }
    match reply(&response, size_limit(request, udp)) {
        Step::Reply(bytes) => Some(bytes),
        _ => None,
    }
}

/// A request for others about `query`.
pub fn question(query: Query) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(MOST_UDP_BYTES);
    message.set_edns(edns);
    message.to_vec().ok()
}

fn start(request: &Message) -> Message {
    let mut response = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MOST_UDP_BYTES);
        response.set_edns(edns);
    }
    response
}

fn size_limit(request: &Message, udp: bool) -> u16 {
    if !udp {
        return u16::MAX;
    }
    request.edns.as_ref().map_or(LEAST_UDP_BYTES, |edns| edns.max_payload().clamp(LEAST_UDP_BYTES, MOST_UDP_BYTES))
}

/// The courtesy goes first when space is short; then the client is told to come back over TCP.
fn reply(response: &Message, limit: u16) -> Step {
    let fits = |message: &Message| message.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit));
    if let Some(bytes) = fits(response) {
        return Step::Reply(bytes);
    }
    let mut slim = response.clone();
    slim.additionals.clear();
    fits(&slim).or_else(|| fits(&response.truncate())).map_or(Step::Ignore, Step::Reply)
}
