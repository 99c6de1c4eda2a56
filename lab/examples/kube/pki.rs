//! The cluster's certificates and kubeconfigs, made with `openssl` into one folder.
//!
//! Invariant: only the certificate authority may sign; everything else is marked as an end entity.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

/// A folder with `ca`, and with what it signed: NAME.crt, NAME.key.
#[derive(Debug)]
pub(crate) struct Pki {
    dir: PathBuf,
}

/// Who a certificate is for.
pub(crate) struct Subject<'a> {
    /// Name of the files.
    pub(crate) file: &'a str,
    /// The user, to Kubernetes.
    pub(crate) common_name: &'a str,
    /// The user's group.
    pub(crate) organisation: &'a str,
    /// Names and addresses it serves under: `DNS:…`, `IP:…`.
    pub(crate) serves: &'a [String],
}

impl Pki {
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        let pki = Self { dir: dir.to_owned() };
        let authority = Subject { file: "ca", common_name: "tartan-lab", organisation: "tartan", serves: &[] };
        pki.certify(&authority, "critical,CA:TRUE", &[])?;
        // The key that signs service account tokens; no certificate goes with it. Kubernetes reads the format of
        // `ecparam`, not that of `genpkey`.
        let key = pki.key("sa");
        openssl(&["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", utf8(&key)?])?;
        Ok(pki)
    }

    pub(crate) fn cert(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.crt"))
    }

    pub(crate) fn key(&self, file: &str) -> PathBuf {
        self.dir.join(format!("{file}.key"))
    }

    /// Makes a key and a certificate, for a client and for a server alike.
    pub(crate) fn sign(&self, subject: &Subject<'_>) -> Result<()> {
        let (cert, key) = (self.cert("ca"), self.key("ca"));
        self.certify(subject, "critical,CA:FALSE", &["-CA", utf8(&cert)?, "-CAkey", utf8(&key)?])
    }

    /// Signs `subject` and writes how it reaches the API server. `seen_at` is this folder as the reader sees it.
    pub(crate) fn kubeconfig(&self, subject: &Subject<'_>, server: &str, seen_at: &Path) -> Result<PathBuf> {
        self.sign(subject)?;
        let seen = |file: PathBuf| file.file_name().map(|name| seen_at.join(name));
        let user = json!({
            "client-certificate": seen(self.cert(subject.file)),
            "client-key": seen(self.key(subject.file)),
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": seen(self.cert("ca"))}}],
            "users": [{"name": "lab", "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        });
        let path = self.dir.join(format!("{}.conf", subject.file));
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// The same for who reads this folder where it is.
    pub(crate) fn user(&self, subject: &Subject<'_>, server: &str) -> Result<PathBuf> {
        self.kubeconfig(subject, server, &self.dir)
    }

    fn certify(&self, subject: &Subject<'_>, constraints: &str, signer: &[&str]) -> Result<()> {
        let Subject { file, common_name, organisation, serves } = subject;
        let alternative =
            if serves.is_empty() { String::new() } else { format!("subjectAltName={}\n", serves.join(",")) };
        // openssl's own configuration would make every certificate an authority.
        let request = format!(
            "[req]\nprompt=no\ndistinguished_name=name\nx509_extensions=extensions\n\
             [name]\nO={organisation}\nCN={common_name}\n\
             [extensions]\nbasicConstraints={constraints}\nsubjectKeyIdentifier=hash\n{alternative}"
        );
        let request_file = self.dir.join(format!("{file}.cnf"));
        fs::write(&request_file, request)?;
        let (cert, key) = (self.cert(file), self.key(file));
        let mut args = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"];
        args.extend(["-days", "30", "-config", utf8(&request_file)?, "-out", utf8(&cert)?, "-keyout", utf8(&key)?]);
        args.extend(signer);
        openssl(&args)
    }
}

fn openssl(args: &[&str]) -> Result<()> {
    let output = Command::new("openssl").args(args).output().context("running `openssl` of openssl")?;
    if !output.status.success() {
        bail!("openssl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
