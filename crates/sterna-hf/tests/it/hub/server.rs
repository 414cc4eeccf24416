//! As much of the hub as the client asks for, on the loopback interface.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The commit that every repository is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and how it behaves.
#[derive(Default)]
pub(crate) struct Content {
    /// Files by repository (`models/org/name`, `datasets/org/name`), by path.
    pub(crate) repos: HashMap<String, Vec<(String, Vec<u8>)>>,
    /// A status to answer everything with.
    pub(crate) status: Option<u16>,
    /// The token to insist on.
    pub(crate) token: Option<String>,
    /// A file to hang up in the middle of.
    pub(crate) cut: Option<String>,
}

pub(crate) struct Server {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(content: Content) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let content = Arc::new(Mutex::new(content));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (content, requests, is_over) = (content.clone(), requests.clone(), is_over.clone());
            move || {
                for stream in listener.incoming() {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    // A client may hang up; that is its business.
                    let _ = answer(&stream.unwrap(), &content.lock().unwrap(), &requests);
                }
            }
        });
        Server { address, content, requests, is_over, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.content.lock().unwrap());
    }

    /// The paths asked for since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn answer(
    stream: &TcpStream,
    content: &Content,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.by_ref().read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    requests.lock().unwrap().push(path.clone());

    let is_let_in = content.token.as_ref().is_none_or(|token| {
        headers.get("authorization").is_some_and(|sent| *sent == format!("Bearer {token}"))
    });
    if let Some(status) = content.status.or((!is_let_in).then_some(401)) {
        return respond(stream, status, &[], b"", 0);
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let Some(files) =
            rest.split_once("/revision/").and_then(|(repo, _)| content.repos.get(repo))
        else {
            return respond(stream, 404, &[], b"", 0);
        };
        let siblings: Vec<_> =
            files.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings, "id": rest}).to_string();
        return respond(
            stream,
            200,
            &["Content-Type: application/json".to_owned()],
            body.as_bytes(),
            body.len(),
        );
    }
    let found = path[1..].split_once(&format!("/resolve/{COMMIT}/")).and_then(|(repo, file)| {
        let is_dataset = repo.starts_with("datasets/");
        let repo = if is_dataset { repo.to_owned() } else { format!("models/{repo}") };
        content.repos.get(&repo)?.iter().find(|(name, _)| name == file)
    });
    let Some((file, bytes)) = found else { return respond(stream, 404, &[], b"", 0) };
    // The client always asks for `bytes=FROM-` or `bytes=0-0`.
    let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")).unwrap_or("0-");
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
    let body = &bytes[from..to.min(bytes.len())];
    let etag: u64 =
        bytes.iter().fold(file.len() as u64, |sum, byte| sum.wrapping_mul(131) + u64::from(*byte));
    let headers = [
        format!("ETag: \"{etag:x}\""),
        format!("X-Repo-Commit: {COMMIT}"),
        format!("Content-Range: bytes {from}-{}/{}", to.saturating_sub(1), bytes.len()),
    ];
    let is_cut = content.cut.as_deref() == Some(file) && body.len() > 1;
    let sent = if is_cut { &body[..body.len() / 2] } else { body };
    respond(stream, 206, &headers, sent, body.len())
}

fn respond(
    mut stream: &TcpStream,
    status: u16,
    headers: &[String],
    body: &[u8],
    content_length: usize,
) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {content_length}\r\nConnection: close\r\n");
    for header in headers {
        head += header;
        head += "\r\n";
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}
