//! Bytes that are no request, each with what the caller is told. `bad.txt` holds them: `text` and a frame's body, or
//! `bytes` in hex, sent as they are before the end; then behind `>>` code and message, and what to do; `====` between.

use super::*;

const TABLE: &str = include_str!("bad.txt");

fn bytes(input: &str) -> Vec<u8> {
    let (form, rest) = input.split_once(' ').unwrap_or((input, ""));
    match form {
        "text" => {
            let length = u32::try_from(rest.len()).unwrap().to_be_bytes();
            [&length[..], rest.as_bytes()].concat()
        }
        "bytes" => rest.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect(),
        _ => panic!("{form} is neither text nor bytes"),
    }
}

/// Code and message, and in the next line what to do, where there is more to say.
fn told(error: &CniError) -> String {
    let details = if error.details.is_empty() { String::new() } else { format!(">> {}\n", error.details) };
    format!(">> {} {}\n{details}", error.code, error.msg)
}

/// The case as it is found to be.
async fn found(served: &Served, case: &str) -> String {
    let (input, _) = case.split_once("\n>> ").unwrap_or_else(|| panic!("nothing is said of\n{case}"));
    let mut stream = served.connect().await;
    stream.write_all(&bytes(input)).await.unwrap();
    stream.shutdown().await.unwrap();
    match timeout(Duration::from_secs(60), receive(&mut stream)).await {
        Ok(Reply::Error(error)) => format!("{input}\n{}", told(&error)),
        Ok(Reply::Result(result)) => panic!("{input} came to {result}"),
        Err(_) => panic!("{input} is not answered"),
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused() {
    let mut served = Served::new();
    let (unused, inputs) = mpsc::channel(1);
    let mut inputs = std::mem::replace(&mut served.inputs, inputs);
    drop(unused);
    let seen = || Seen { config: Arc::new(Config::default()), ..Seen::default() };
    tokio::spawn(async move {
        while let Some(input) = inputs.recv().await {
            match input {
                Input::Look(reply) => drop(reply.send(seen())),
                _ => panic!("a bad request has come to the loop"),
            }
        }
    });
    let mut all = Vec::new();
    for case in TABLE.split("====\n") {
        all.push(found(&served, case).await);
    }
    assert!(all.len() >= 30, "the table is cut");
    let all = all.join("====\n");
    assert!(all == TABLE, "bad.txt should be\n{all}");
}
