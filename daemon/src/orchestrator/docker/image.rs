//! Images: the same one, by its id, on both hosts.

use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder, TagImageOptionsBuilder};
use futures_util::{StreamExt, TryStreamExt};
use tokio_util::io::{ReaderStream, StreamReader};

use super::{Docker, status};
use crate::orchestrator::{ByteStream, Error, Image};

/// Size of the pieces in which an archive is handed to the engine, in bytes.
const PIECE: usize = 256 * 1024;

impl Docker {
    /// Id of what a name or id means here.
    pub(super) async fn image_id(&self, name: &str) -> Result<Option<String>, Error> {
        match self.client.inspect_image(name).await {
            Ok(found) => Ok(found.id),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failed(format!("inspect image {name}"))(error)),
        }
    }

    pub(super) async fn image_is_here(&self, image: &Image) -> Result<bool, Error> {
        Ok(self.image_id(&image.id).await?.is_some_and(|id| id == image.id))
    }

    pub(super) async fn pull(&self, image: &Image) -> Result<(), Error> {
        let mut last = Err(Error::NoDigest { image: image.reference.clone() });
        for digest in &image.digests {
            last = self.pull_digest(image, digest).await;
            if last.is_ok() {
                return self.tag(image).await;
            }
        }
        last
    }

    async fn pull_digest(&self, image: &Image, digest: &str) -> Result<(), Error> {
        let (repository, hash) = digest.split_once('@').unwrap_or((digest, "latest"));
        let options = CreateImageOptionsBuilder::default().from_image(repository).tag(hash);
        let options = options.platform(&image.platform()).build();
        let mut progress = self.patient.create_image(Some(options), None, None);
        while let Some(step) = progress.next().await {
            step.map_err(self.failed(format!("pull image {digest}")))?;
        }
        self.must_be(image, digest).await
    }

    /// The name means the image that the source has.
    async fn must_be(&self, image: &Image, name: &str) -> Result<(), Error> {
        let found = self.image_id(name).await?;
        if found.as_ref() == Some(&image.id) {
            return Ok(());
        }
        let (expected, found) = (image.id.clone(), found.unwrap_or_else(|| "missing".to_owned()));
        Err(Error::ImageDiffers { image: image.reference.clone(), expected, found })
    }

    pub(super) async fn save(&self, image: &Image) -> Result<ByteStream, Error> {
        // By id: a tag may have been given to another image since the container was made.
        let archive = self.patient.export_image(&image.id).boxed();
        Ok(Box::new(StreamReader::new(archive.map_err(std::io::Error::other))))
    }

    pub(super) async fn load(&self, image: &Image, archive: ByteStream) -> Result<(), Error> {
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        let pieces = ReaderStream::with_capacity(archive, PIECE);
        let mut progress = std::pin::pin!(self.patient.import_image_stream(options, pieces, None));
        while let Some(step) = progress.next().await {
            step.map_err(self.failed(format!("load image {}", image.reference)))?;
        }
        self.must_be(image, &image.id).await?;
        self.tag(image).await
    }

    /// Gives the image the names it has at the source, except those that mean another image here already: other containers
    /// and people rely on them.
    async fn tag(&self, image: &Image) -> Result<(), Error> {
        for tag in &image.tags {
            // The last colon, as a registry's port has one too; a tag contains no slash.
            let Some((repository, name)) = tag.rsplit_once(':').filter(|(_, name)| !name.contains('/')) else {
                continue;
            };
            match self.image_id(tag).await? {
                Some(id) if id == image.id => {}
                Some(_) => {
                    tracing::warn!(tag, image = image.id, "this host has another image of the same name; not renamed")
                }
                None => {
                    let options = TagImageOptionsBuilder::default().repo(repository).tag(name).build();
                    let tagged = self.client.tag_image(&image.id, Some(options)).await;
                    tagged.map_err(self.failed(format!("tag image {} as {tag}", image.id)))?;
                }
            }
        }
        Ok(())
    }
}
