//! ⇄ The store on disk: what was written is synced before it is answered. One thread writes; what comes while it syncs goes together
//! with the next sync.
//!
//! Kept are the live keys, the leases (their time begins anew with each start, as under a new leader of etcd's), the revision and
//! the cluster id: clients see the same registry again. History is not kept: a watch from before a restart is told to list.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redb::{Database, ReadableTable, TableDefinition};
use tokio::sync::watch;

use super::store::Record;

/// Format of the file; another one is refused.
const FORMAT: u64 = 1;
const FILE: &str = "registry.redb";
/// What the file caches; the live keys are in memory anyway.
const CACHE: usize = 16 << 20;
/// Writes in one sync at the most: some 16 MiB of the largest requests.
const MAX_GROUP: usize = 4096;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const LEASES: TableDefinition<i64, i64> = TableDefinition::new("leases");
/// Create revision, mod revision, version, lease, value.
type Value<'a> = (i64, i64, i64, i64, &'a [u8]);
const KEYS: TableDefinition<&[u8], Value<'_>> = TableDefinition::new("keys");

/// Why the data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The directory cannot be made or entered.
    #[error("{path}: {why}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's words.
        why: io::Error,
    },
    /// Another process has it open.
    #[error("{path}: another process has it open; only one registry can serve it")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not a file of this program, or a damaged one.
    #[error("{path}: {why}; move it away to begin anew, or restore a backup")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A change that is to be on disk before anybody hears of it.
#[derive(Clone, Debug)]
pub(super) enum Write {
    /// A key was put or deleted.
    Key(Arc<Record>),
    /// A lease was granted for so many seconds.
    Lease(i64, i64),
    /// A lease ended.
    LeaseEnded(i64),
}

/// What was on disk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) revision: i64,
    pub(super) cluster_id: u64,
    pub(super) records: Vec<Record>,
    /// Id and seconds.
    pub(super) leases: Vec<(i64, i64)>,
}

/// Writes of one store call, and the revision it left.
pub(super) struct Parcel {
    /// Rises by one.
    pub(super) number: u64,
    pub(super) revision: i64,
    pub(super) writes: Vec<Write>,
}

/// Where writes are kept: the file here, or a simulated disk.
pub(super) trait Storage: Send + Sync {
    /// Hands over the writes of one store call.
    fn write(&self, parcel: Parcel);
    /// Resolves when everything up to this number is synced; `Err` says why it never will be.
    fn synced(&self, number: u64) -> BoxFuture<'_, Result<(), String>>;
    /// Resolves when nothing more can be written, with the reason.
    fn broken(&self) -> BoxFuture<'_, String>;
    /// Bytes that it takes.
    fn size(&self) -> u64;
}

/// How far the disk is: the number of the last parcel that is synced, or why it will go no further.
#[derive(Clone, Debug)]
enum Progress {
    Synced(u64),
    Broken(String),
}

/// An open data directory.
pub(super) struct Disk {
    queue: mpsc::Sender<Parcel>,
    progress: watch::Receiver<Progress>,
    path: PathBuf,
}

impl Disk {
    /// Opens the directory, or makes it; `cluster_id` and `revision` are those of a registry that begins here.
    pub(super) fn open(
        dir: &Path,
        cluster_id: u64,
        revision: i64,
    ) -> Result<(Self, Found), DiskError> {
        let path = dir.join(FILE);
        let in_dir = |why| DiskError::Directory {
            path: dir.to_owned(),
            why,
        };
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(in_dir)?;
        let database = Database::builder().set_cache_size(CACHE).create(&path);
        let database = database.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => DiskError::InUse { path: path.clone() },
            other => DiskError::Unusable {
                path: path.clone(),
                why: other.to_string(),
            },
        })?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(in_dir)?;
        let unusable = |why: String| DiskError::Unusable {
            path: path.clone(),
            why,
        };
        begin(&database, cluster_id, revision).map_err(|e| unusable(e.to_string()))?;
        let found = load(&database).map_err(unusable)?;
        let (queue, parcels) = mpsc::channel();
        let (tell, progress) = watch::channel(Progress::Synced(0));
        std::thread::Builder::new()
            .name("registry-disk".to_owned())
            .spawn(move || write_all(&database, &parcels, &tell))
            .map_err(in_dir)?;
        let disk = Self {
            queue,
            progress,
            path,
        };
        Ok((disk, found))
    }
}

impl Storage for Disk {
    fn write(&self, parcel: Parcel) {
        // A writer that is gone has said why.
        self.queue.send(parcel).ok();
    }

    fn synced(&self, number: u64) -> BoxFuture<'_, Result<(), String>> {
        let mut progress = self.progress.clone();
        let far_enough = move |at: &Progress| match at {
            Progress::Synced(at) => *at >= number,
            Progress::Broken(_) => true,
        };
        Box::pin(async move {
            match progress.wait_for(far_enough).await.map(|at| at.clone()) {
                Ok(Progress::Synced(_)) => Ok(()),
                Ok(Progress::Broken(why)) => Err(why),
                Err(_) => Err("the disk's thread has ended".to_owned()),
            }
        })
    }

    fn broken(&self) -> BoxFuture<'_, String> {
        let mut progress = self.progress.clone();
        let broken = |at: &Progress| matches!(at, Progress::Broken(_));
        Box::pin(async move {
            match progress.wait_for(broken).await.map(|at| at.clone()) {
                Ok(Progress::Broken(why)) => why,
                Ok(Progress::Synced(_)) | Err(_) => "the disk's thread has ended".to_owned(),
            }
        })
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }
}

#[allow(clippy::result_large_err, reason = "once a start, or once for good")]
fn begin(database: &Database, cluster_id: u64, revision: i64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        transaction.open_table(KEYS)?;
        transaction.open_table(LEASES)?;
        if meta.get("format")?.is_none() {
            meta.insert("format", FORMAT)?;
            meta.insert("cluster_id", cluster_id)?;
            meta.insert("revision", u64::try_from(revision).unwrap_or(1))?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn load(database: &Database) -> Result<Found, String> {
    let words = |error: redb::Error| error.to_string();
    let transaction = database.begin_read().map_err(|e| words(e.into()))?;
    let meta = transaction.open_table(META).map_err(|e| words(e.into()))?;
    let number = |key: &str| -> Result<u64, String> {
        let found = meta.get(key).map_err(|e| words(e.into()))?;
        found
            .map(|n| n.value())
            .ok_or_else(|| format!("it says nothing of its {key}"))
    };
    let format = number("format")?;
    if format != FORMAT {
        return Err(format!(
            "its format is {format}, this program knows {FORMAT}"
        ));
    }
    let keys = transaction.open_table(KEYS).map_err(|e| words(e.into()))?;
    let mut records = Vec::new();
    for entry in keys.iter().map_err(|e| words(e.into()))? {
        let (key, value) = entry.map_err(|e| words(e.into()))?;
        let (create_revision, mod_revision, version, lease, bytes) = value.value();
        records.push(Record {
            key: Bytes::copy_from_slice(key.value()),
            value: Bytes::copy_from_slice(bytes),
            create_revision,
            mod_revision,
            version,
            lease,
        });
    }
    let table = transaction
        .open_table(LEASES)
        .map_err(|e| words(e.into()))?;
    let mut leases = Vec::new();
    for entry in table.iter().map_err(|e| words(e.into()))? {
        let (id, ttl) = entry.map_err(|e| words(e.into()))?;
        leases.push((id.value(), ttl.value()));
    }
    let revision = i64::try_from(number("revision")?).map_err(|_| "its revision is no revision")?;
    Ok(Found {
        revision,
        cluster_id: number("cluster_id")?,
        records,
        leases,
    })
}

/// Until the store is gone, or the disk fails.
fn write_all(
    database: &Database,
    parcels: &mpsc::Receiver<Parcel>,
    tell: &watch::Sender<Progress>,
) {
    while let Ok(first) = parcels.recv() {
        let mut group = vec![first];
        group.extend(parcels.try_iter().take(MAX_GROUP - 1));
        let last = group.last().map_or(0, |parcel| parcel.number);
        if let Err(error) = sync(database, &group) {
            log::error!(target: "registry", event = "registry.disk_failed", err = error.to_string(); "the registry's data cannot be written: it stops, so that nothing is acknowledged that is not there");
            tell.send_replace(Progress::Broken(error.to_string()));
            return;
        }
        tell.send_replace(Progress::Synced(last));
    }
}

#[allow(clippy::result_large_err, reason = "once a start, or once for good")]
fn sync(database: &Database, group: &[Parcel]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut keys = transaction.open_table(KEYS)?;
        let mut leases = transaction.open_table(LEASES)?;
        for write in group.iter().flat_map(|parcel| &parcel.writes) {
            match write {
                Write::Key(record) if record.is_deletion() => drop(keys.remove(&*record.key)?),
                Write::Key(record) => {
                    let r = (
                        record.create_revision,
                        record.mod_revision,
                        record.version,
                        record.lease,
                        &*record.value,
                    );
                    keys.insert(&*record.key, r)?;
                }
                Write::Lease(id, ttl) => drop(leases.insert(id, ttl)?),
                Write::LeaseEnded(id) => drop(leases.remove(id)?),
            }
        }
        let revision = group.iter().map(|parcel| parcel.revision).max();
        let mut meta = transaction.open_table(META)?;
        meta.insert(
            "revision",
            u64::try_from(revision.unwrap_or(1)).unwrap_or(1),
        )?;
    }
    // Synced: this is redb's default, and what the promise stands on.
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &'static str, revision: i64, version: i64) -> Write {
        Write::Key(Arc::new(Record {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"value"),
            create_revision: 7,
            mod_revision: revision,
            version,
            lease: 5,
        }))
    }

    #[tokio::test]
    async fn what_was_synced_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, found) = Disk::open(dir.path(), 42, 7).unwrap();
        assert_eq!(
            (found.revision, found.cluster_id, found.records.len()),
            (7, 42, 0)
        );
        let first = vec![record("a", 8, 1), Write::Lease(5, 60), Write::Lease(6, 60)];
        let last = vec![record("a", 10, 0), Write::LeaseEnded(6)];
        for (number, writes) in (1..).zip([first, vec![record("b", 9, 1)], last]) {
            disk.write(Parcel {
                number,
                revision: 7 + number as i64,
                writes,
            });
        }
        disk.synced(3).await.unwrap();
        assert!(matches!(
            Disk::open(dir.path(), 1, 1),
            Err(DiskError::InUse { .. })
        ));
        drop(disk);
        let found = loop {
            match Disk::open(dir.path(), 1, 1) {
                Ok((_, found)) => break found,
                // Its thread is about to close it.
                Err(DiskError::InUse { .. }) => tokio::task::yield_now().await,
                Err(other) => panic!("{other}"),
            }
        };
        assert_eq!((found.revision, found.cluster_id), (10, 42));
        assert_eq!(found.records.len(), 1);
        assert_eq!(
            (&found.records[0].key[..], found.records[0].lease),
            (&b"b"[..], 5)
        );
        assert_eq!(found.leases, [(5, 60)]);
    }

    #[test]
    fn a_file_of_another_kind_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(FILE),
            b"this is no database, and long enough to be looked at",
        )
        .unwrap();
        let Err(error) = Disk::open(dir.path(), 1, 1) else {
            panic!("it was taken");
        };
        let words = error.to_string();
        assert!(
            words.contains(FILE) && words.contains("move it away"),
            "{words}"
        );
    }
}
