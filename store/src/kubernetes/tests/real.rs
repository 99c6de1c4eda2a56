//! A real etcd and kube-apiserver on loopback, and a way to them that can be cut.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tartan_model::ObjectId;

use crate::conformance::Rig;
use crate::{KubernetesStore, Store};

/// Where the programs are, as `cargo xtask kube` says it.
const PATH: &str = "TARTAN_KUBE_PATH";
const TOKEN: &str = "for-tests-only";
const PATIENCE: Duration = Duration::from_secs(60);

/// A running API server; it ends when dropped.
pub(super) struct ApiServer {
    children: Vec<Child>,
    dir: PathBuf,
    kubectl: PathBuf,
    address: SocketAddr,
}

/// An empty store behind a way that can be cut.
pub(super) struct Behind {
    server: Arc<ApiServer>,
    kubeconfig: PathBuf,
    way: Arc<Way>,
}

#[derive(Default)]
struct Way {
    cut: AtomicBool,
    through: Mutex<Vec<TcpStream>>,
}

// === impl ApiServer ===

impl ApiServer {
    pub(super) async fn start() -> ApiServer {
        let dir = std::env::temp_dir().join(format!("tartan-apiserver-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n")).unwrap();
        let key = dir.join("sa.key");
        let ecparam = ["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out"];
        assert!(Command::new("openssl").args(ecparam).arg(&key).status().unwrap().success());

        let [etcd, peer, address] = [free(), free(), free()];
        let mut server = ApiServer { children: Vec::new(), dir, kubectl: program("kubectl"), address };
        server.spawn(
            "server",
            &[
                format!("--data-dir={}", server.dir.join("etcd").display()),
                format!("--listen-client-urls=http://{etcd}"),
                format!("--advertise-client-urls=http://{etcd}"),
                format!("--listen-peer-urls=http://{peer}"),
                "--unsafe-no-fsync".into(),
            ],
        );
        server.spawn(
            "kube-apiserver",
            &[
                format!("--etcd-servers=http://{etcd}"),
                "--bind-address=127.0.0.1".into(),
                format!("--secure-port={}", address.port()),
                format!("--cert-dir={}", server.dir.display()),
                format!("--token-auth-file={}", server.dir.join("tokens.csv").display()),
                "--authorization-mode=RBAC".into(),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={}", key.display()),
                format!("--service-account-signing-key-file={}", key.display()),
                // It serves nobody but us, and no Service leads to it.
                "--advertise-address=192.0.2.1".into(),
                "--endpoint-reconciler-type=none".into(),
            ],
        );
        server.wait_until_ready().await;
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
        for file in ["crds.yaml", "pool-crds.yaml"] {
            server.kubectl(&["apply", "--filename", &format!("{deploy}/{file}")]).unwrap();
        }
        server.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]).unwrap();
        server
    }

    fn spawn(&mut self, name: &str, args: &[String]) {
        let log = fs::File::create(self.dir.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program(name));
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    async fn wait_until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        fs::write(self.dir.join("admin.conf"), self.kubeconfig(self.address)).unwrap();
        while let Err(error) = self.kubectl(&["get", "--raw", "/readyz"]) {
            let log = || fs::read_to_string(self.dir.join("kube-apiserver.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the API server does not get ready: {error}\n{}", log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn kubeconfig(&self, address: SocketAddr) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://{address}', certificate-authority: apiserver.crt}}}}]\n\
             users: [{{name: u, user: {{token: {TOKEN}}}}}]\n"
        )
    }

    /// Objects as JSON, one after the other.
    pub(super) fn apply(&self, objects: &str) -> Result<String, String> {
        self.kubectl(&["apply", "--filename", &self.file("objects.json", objects)])
    }

    /// Writes a file for kubectl; gives its path.
    pub(super) fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.run(&[format!("--kubeconfig={}", self.dir.join("admin.conf").display())], args)
    }

    /// As whoever has the token.
    pub(super) fn kubectl_as(&self, token: &str, args: &[&str]) -> Result<String, String> {
        let authority = self.dir.join("apiserver.crt");
        let who = [
            "--kubeconfig=/dev/null".to_owned(),
            format!("--server=https://{}", self.address),
            format!("--certificate-authority={}", authority.display()),
            format!("--token={token}"),
        ];
        self.run(&who, args)
    }

    fn run(&self, who: &[String], args: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.kubectl).args(who).args(args).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os(PATH).unwrap_or_else(|| panic!("{PATH} is not set: run `cargo xtask kube test`"));
    let mut files = std::env::split_paths(&path).map(|folder| folder.join(name));
    files.find(|file| file.exists()).unwrap_or_else(|| panic!("{name} is not in {PATH}"))
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

// === impl Behind ===

impl Behind {
    pub(super) fn new(server: Arc<ApiServer>) -> Behind {
        let kinds = "networkconfigs,nodenetworks,ipblocks,ippools,ipreservations";
        server.kubectl(&["delete", kinds, "--all"]).unwrap();
        let way = Arc::new(Way::default());
        let here = way.clone().open(server.address);
        let kubeconfig = server.dir.join(format!("{}.conf", here.port()));
        fs::write(&kubeconfig, server.kubeconfig(here)).unwrap();
        Behind { server, kubeconfig, way }
    }

    pub(super) fn kubernetes(&self) -> KubernetesStore {
        KubernetesStore::open(self.kubeconfig.to_str().unwrap()).unwrap()
    }

    fn set_selector(&self, id: &ObjectId, selector: &str) {
        let patch = format!(r#"{{"spec":{{"nodeSelector":"{selector}"}}}}"#);
        self.server.kubectl(&["patch", "ippool", &id.name, "--type=merge", "--patch", &patch]).unwrap();
    }
}

impl Rig for Behind {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.kubernetes())
    }

    fn go_away(&self) {
        self.way.cut.store(true, Ordering::SeqCst);
        for stream in self.way.through.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn come_back(&self) {
        self.way.cut.store(false, Ordering::SeqCst);
    }

    fn vanish(&self, id: &ObjectId) {
        self.server.kubectl(&["delete", &id.kind.as_str().to_lowercase(), &id.name]).unwrap();
    }

    /// No schema can tell that a selector ends too early.
    fn spoil(&self, id: &ObjectId) {
        self.set_selector(id, "zone ==");
    }

    fn mend(&self, id: &ObjectId) {
        self.set_selector(id, "zone == 'a'");
    }
}

// === impl Way ===

impl Way {
    /// Carries connections to `there` for as long as the test runs.
    fn open(self: Arc<Self>, there: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !self.cut.load(Ordering::SeqCst)
                    && let Ok(other) = TcpStream::connect(there)
                {
                    self.carry(&stream, &other).unwrap();
                }
            }
        });
        here
    }

    fn carry(&self, one: &TcpStream, other: &TcpStream) -> io::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            self.through.lock().unwrap().push(from.try_clone()?);
            std::thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        Ok(())
    }
}
