//! The plugin that `ipam.type` names, which chooses addresses in Tartan's place: called as section 4 of the spec
//! ("Plugin Delegation") says, with our own environment and configuration.
//!
//! Invariant: what it gave in an ADD that fails is given back, and it takes nothing back before the agent has let go of it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use serde_json::Value;
use tartan_api::cni::{CniError, CniRequest, Command, NetConf, Success, Version, code};

use crate::input::Var;

/// A plugin, and what it is told.
pub(crate) struct Delegate<'a> {
    name: String,
    program: PathBuf,
    stdin: &'a [u8],
}

/// Has `agent` carry out the request, with the addresses of the delegate in it.
pub(crate) fn around(
    delegate: &Delegate<'_>,
    request: CniRequest,
    agent: impl FnOnce(CniRequest) -> Result<Value, CniError>,
) -> Result<Value, CniError> {
    match request.command {
        Command::Add => {
            let given = delegate.add(request.version)?;
            agent(CniRequest { given: Some(given), ..request }).inspect_err(|error| {
                // An interface that is there already keeps what it has. The first error is the one to tell.
                if error.code != code::EXISTS {
                    let _failed = delegate.call(Command::Del);
                }
            })
        }
        command @ Command::Check => {
            delegate.call(command)?;
            agent(request)
        }
        command @ (Command::Del | Command::Gc | Command::Status) => {
            let said = agent(request)?;
            delegate.call(command).map(|_| said)
        }
    }
}

impl<'a> Delegate<'a> {
    /// The plugin that the configuration names, from CNI_PATH.
    pub(crate) fn of(netconf: &NetConf, var: Var<'_>, stdin: &'a [u8]) -> Result<Option<Delegate<'a>>, CniError> {
        let Some(name) = netconf.ipam_type() else { return Ok(None) };
        if name.contains('/') {
            let msg = format!("ipam.type {name:?} is no name of a plugin");
            return Err(CniError::new(code::BAD_NETCONF, msg, "it is the name of a program in CNI_PATH"));
        }
        let path = var("CNI_PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
        let program = program.ok_or_else(|| {
            let msg = format!("ipam.type {name}: there is no such plugin in CNI_PATH={path}");
            CniError::new(
                code::BAD_ENVIRONMENT,
                msg,
                "install it there, or take `ipam` out: Tartan then gives addresses",
            )
        })?;
        Ok(Some(Delegate { name: name.to_owned(), program, stdin }))
    }

    fn add(&self, version: Version) -> Result<Success, CniError> {
        if version < Version::V0_3_0 {
            let msg = format!("ipam.type {}: cniVersion {version} does not do", self.name);
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg, "write 0.3.0 or newer"));
        }
        let said = self.call(Command::Add)?;
        serde_json::from_slice(&said).map_err(|error| {
            // It gave something all the same.
            let _failed = self.call(Command::Del);
            self.failed(code::DECODE, format!("its result: {error}"), "")
        })
    }

    /// Runs it to its end; what it prints.
    fn call(&self, command: Command) -> Result<Vec<u8>, CniError> {
        let mut process = Process::new(&self.program);
        process.env("CNI_COMMAND", command.as_str());
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let io =
            |error: std::io::Error| self.failed(code::IO, format!("running {}: {error}", self.program.display()), "");
        let mut child = process.spawn().map_err(io)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends before it has read all says why on stdout.
            let _closed = stdin.write_all(self.stdin);
        }
        let output = child.wait_with_output().map_err(io)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = serde_json::from_slice::<CniError>(&output.stdout).map_err(|_| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            self.failed(code::IO, format!("{command}: {}", output.status), stderr.trim())
        })?;
        Err(CniError { msg: format!("ipam.type {}: {}", self.name, said.msg), ..said })
    }

    fn failed(&self, code: u32, what: String, details: &str) -> CniError {
        CniError::new(code, format!("ipam.type {}: {what}", self.name), details)
    }
}
