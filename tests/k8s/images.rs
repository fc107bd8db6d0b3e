//! The images that the manifests name, made here under names of their own: nothing is pulled, nothing else is touched.

use super::support::{BINARY, has};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

/// Names that no other run of the tests uses; removed when the last test that holds them ends.
pub struct Images {
    prefix: String,
}

/// An image that never heard of gracekeeper: a name of the manifests, its ENTRYPOINT as docker's change, whether with python.
const FOREIGN: [(&str, &str, bool); 4] = [
    ("busybox:stable", "CMD [\"sh\"]", false),
    ("greeter:1", "ENTRYPOINT [\"/bin/echo\", \"Hello\"]", false),
    ("python:3-slim", "CMD [\"python3\"]", true),
    // Every weakening that an ENV could be.
    (
        "weakened:1",
        "ENV RISK_LEVEL=low INTERNAL_TIMEOUT=9m GRACE_PERIOD=9m SOFT_LIMIT=299s HARD_LIMIT=300s SCRUB_BUDGET=365m \
         SHUTDOWN_MONITORING=off AUDIT_LEVEL=basic AUDIT_REQUIRED=no ADAPTIVE_GRACE=no WORKLOAD_ENV=inherit \
         WORKLOAD_NETWORK=allow WORKLOAD_FILESYSTEM=guard LOG_LEVEL=INFO",
        false,
    ),
];

impl Images {
    /// The images, built once for all tests that run at the time; `None` where docker is not here.
    pub fn get() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Images>> = Mutex::new(Weak::new());
        if !has("docker") {
            return None;
        }
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(images) = shared.upgrade() {
            return Some(images);
        }
        let images = Arc::new(Self::build());
        *shared = Arc::downgrade(&images);
        Some(images)
    }

    fn build() -> Self {
        let images = Self { prefix: format!("gk-k8s-{}/", std::process::id()) };
        run(Command::new("image/build")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("GRACEKEEPER", BINARY)
            .env("REPOSITORY", &images.prefix));
        let root = tempfile::tempdir().unwrap();
        for (name, change, python) in FOREIGN {
            let rootfs = root.path().join(name);
            rootfs_of(&rootfs, python);
            let tar = root.path().join("tar");
            run(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&tar).arg("."));
            let path = "ENV PATH=/usr/bin:/bin";
            run(Command::new("docker")
                .args(["import", "-c", path, "-c", change])
                .arg(&tar)
                .arg(images.prefix.clone() + name));
        }
        images
    }

    /// What an image of the manifests is called here.
    pub fn name(&self, image: &str) -> Result<String, String> {
        let ours = ["scratch", "evaluation"].map(|n| format!("gracekeeper-{n}:{}", env!("CARGO_PKG_VERSION")));
        if ours.iter().any(|i| i == image) || FOREIGN.iter().any(|(name, ..)| *name == image) {
            Ok(self.prefix.clone() + image)
        } else {
            Err(format!("image {image}: not one that is made here"))
        }
    }

    /// A name for an image of the test's own, removed with the others.
    pub fn own(&self, name: &str) -> String {
        format!("{}{name}:test", self.prefix)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        let out = Command::new("docker").args(["images", "--format", "{{.Repository}}:{{.Tag}}"]).output();
        let names = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let ours: Vec<&str> = names.lines().filter(|name| name.starts_with(&self.prefix)).collect();
        let _ = Command::new("docker").arg("rmi").args(ours).output();
    }
}

/// busybox, and Debian's python where it is asked for.
fn rootfs_of(root: &Path, python: bool) {
    let script = r#"
        mkdir -p "$1/bin" "$1/tmp" "$1/var/tmp" "$1/var/log" "$1/usr/bin" && chmod 1777 "$1/tmp" "$1/var/tmp" &&
        cp "$(command -v busybox)" "$1/bin/busybox" || exit 1
        for applet in $("$1/bin/busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet" || exit 1; done
        [ "$2" = python ] || exit 0
        real=$(readlink -f /usr/bin/python3) && cp "$real" "$1/usr/bin/python3" || exit 1
        version=$(basename "$real") && mkdir -p "$1/usr/lib/$version" || exit 1
        (cd "/usr/lib/$version" && tar -cf - --exclude=__pycache__ --exclude=test --exclude=dist-packages .) |
            tar -C "$1/usr/lib/$version" -xf - || exit 1
        ldd "$real" /usr/lib/"$version"/lib-dynload/*.so | grep -o '/[^ ]*' | grep -v ':$' | sort -u |
            while read -r library; do mkdir -p "$1$(dirname "$library")" && cp -L "$library" "$1$library"; done
    "#;
    run(Command::new("bash").args(["-c", script, "-"]).arg(root).arg(if python { "python" } else { "" }));
}

/// A program that has to succeed.
pub fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {stdout}{stderr}");
    stdout.into_owned()
}
