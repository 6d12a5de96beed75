//! An imitation of AWS: moto's server, for what cannot run here. It keeps instances, their states, an account and buckets in memory, and
//! answers EC2's, STS's and S3's API over HTTP. Instances of it are only names: to have a host "be" one of them is the caller's work.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use xxhash_rust::xxh3::xxh3_64;

use crate::base::{lock, remove_if_there};
use crate::command::{command, run};
use crate::error::{Context, Error, Result};
use crate::layout::CACHE;
use crate::machine;

/// Everything that is installed, with its version.
const REQUIREMENTS: &str = include_str!("moto/requirements.txt");

/// The server that is started: moto's own, and the rules of private addresses that it lacks.
const SERVER: &str = include_str!("moto/server.py");

/// The region that our instances are in; also that of the testbed's hosts.
pub const REGION: &str = "eu-central-1";

/// The account that moto puts everybody in; also that of the testbed's hosts.
pub const ACCOUNT: &str = "123456789012";

/// One verb of EC2 through AWS's SDK for Python, which comes with moto. Prints what was asked for, or the instance's id.
const VERB: &str = r#"
import sys, boto3
verb, endpoint, region, *ids = sys.argv[1:]
ec2 = boto3.client("ec2", region_name=region, endpoint_url=endpoint, aws_access_key_id="key", aws_secret_access_key="secret")
if verb == "run":
    image = ec2.describe_images()["Images"][0]["ImageId"]
    ids = [ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]]
elif verb == "tag":
    id, *pairs = ids
    ec2.create_tags(Resources=[id], Tags=[dict(zip(("Key", "Value"), pair.split("=", 1))) for pair in pairs])
elif verb == "template":
    image = ec2.describe_images()["Images"][0]["ImageId"]
    data = {"ImageId": image, "InstanceType": "t3.micro"}
    ec2.create_launch_template(LaunchTemplateName=ids[0], LaunchTemplateData=data)
elif verb == "interface":
    interfaces = ec2.describe_instances(InstanceIds=ids)["Reservations"][0]["Instances"][0]["NetworkInterfaces"]
    ids = [interfaces[0]["NetworkInterfaceId"]]
elif verb == "assign":
    ec2.assign_private_ip_addresses(NetworkInterfaceId=ids[0], PrivateIpAddresses=ids[1:])
elif verb == "addresses":
    interface = ec2.describe_network_interfaces(NetworkInterfaceIds=ids)["NetworkInterfaces"][0]
    ids = [one["PrivateIpAddress"] for one in interface["PrivateIpAddresses"]]
elif verb == "tagged":
    wanted = dict(zip(("Key", "Value"), ids[0].split("=", 1)))
    pages = ec2.get_paginator("describe_instances").paginate()
    instances = [one for page in pages for some in page["Reservations"] for one in some["Instances"]]
    ids = [one["InstanceId"] for one in instances if one["State"]["Name"] == "running" and wanted in one.get("Tags", [])]
else:
    getattr(ec2, verb + "_instances")(InstanceIds=ids)
print(*ids)
"#;

/// What a test does to queues: makes one and prints its URL, puts a message into it, or counts what it holds.
const QUEUE: &str = r#"
import sys, boto3
verb, endpoint, region, *words = sys.argv[1:]
sqs = boto3.client("sqs", region_name=region, endpoint_url=endpoint, aws_access_key_id="key", aws_secret_access_key="secret")
if verb == "make":
    print(sqs.create_queue(QueueName=words[0])["QueueUrl"])
elif verb == "send":
    sqs.send_message(QueueUrl=words[0], MessageBody=words[1])
else:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.get_queue_attributes(QueueUrl=words[0], AttributeNames=names)["Attributes"]
    print(*(attributes[name] for name in names))
"#;

/// What S3 has to do, the same way. Prints of every object in a bucket its name and entity tag, one a line.
const BUCKET: &str = r#"
import sys, boto3
verb, endpoint, region, bucket = sys.argv[1:]
s3 = boto3.client("s3", region_name=region, endpoint_url=endpoint, aws_access_key_id="key", aws_secret_access_key="secret")
if verb == "make":
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
else:
    for thing in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        print(thing["Key"], thing["ETag"].strip('"'))
"#;

/// Installs moto in a virtual environment of its own below the cache, unless it is there, and returns that directory.
///
/// # Errors
/// [`Error::Command`] with the words of Python, pip or apt.
pub fn ensure(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let cache = Path::new(CACHE);
    let place = cache.join(format!("moto-{:016x}", xxh3_64(REQUIREMENTS.as_bytes())));
    // Written last. The directory cannot be made elsewhere and renamed: its programs have its path in their first line.
    let complete = place.join("complete");
    fs::create_dir_all(cache).on("make", cache)?;
    let _lock = lock(&cache.join("moto.lock"))?;
    if complete.exists() {
        return Ok(place);
    }
    machine::prepare_python(say)?;
    say(&format!("installing moto, an imitation of AWS, in {} (once)", place.display()));
    remove_if_there(&place)?;
    run(command("python3", ["-m", "venv"]).arg(&place))?;
    let requirements = place.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS).on("write", &requirements)?;
    let pip = place.join("bin/pip");
    run(command(&pip.to_string_lossy(), ["install", "--quiet", "--no-deps", "--requirement"]).arg(&requirements))?;
    fs::write(&complete, "").on("write", &complete)?;
    Ok(place)
}

/// A server that runs until this is dropped.
#[derive(Debug)]
pub struct Moto {
    place: PathBuf,
    server: Child,
    endpoint: String,
    /// The network that the server is in, if it is not the caller's.
    network: Option<PathBuf>,
}

impl Moto {
    /// Starts a server on a free port of this address, in the caller's network or in a named one (a file below /run/netns), and
    /// returns when it answers. `say` hears what has to be installed for it.
    ///
    /// # Errors
    /// [`Error::Command`] or [`Error::Start`] when it cannot be installed or started.
    pub fn start(address: &str, network: Option<&Path>, say: &dyn Fn(&str)) -> Result<Self> {
        let place = ensure(say)?;
        let server = place.join("bin/python").to_string_lossy().into_owned();
        let mut start = within(network, &server);
        start
            .args(["-c", SERVER, "-H", address, "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut server = start.spawn().map_err(|source| Error::Start { program: server, source })?;
        let stderr = server.stderr.take().map(BufReader::new);
        let mut lines = stderr.into_iter().flat_map(BufRead::lines).map_while(|line| line.ok());
        let mut said = String::new();
        let endpoint = lines.find_map(|line| {
            said.push_str(&line);
            Some(line.split_once("Running on ")?.1.trim().to_owned())
        });
        let Some(endpoint) = endpoint else {
            let status = server.wait().on("wait for", Path::new("moto_server"))?;
            return Err(Error::Command { command: "moto_server".to_owned(), status, output: said });
        };
        // It writes a line for every request, for as long as it lives.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { place, server, endpoint, network: network.map(Path::to_owned) })
    }

    /// Base URL of all of its services: what `AWS_ENDPOINT_URL` must say.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Starts an instance and returns its id.
    ///
    /// # Errors
    /// [`Error::Command`] with moto's words; so of the others.
    pub fn run_instance(&self) -> Result<String> {
        self.ec2("run", &[])
    }

    /// Gives an instance tags, each as `KEY=VALUE`.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn tag(&self, id: &str, tags: &[&str]) -> Result<()> {
        self.ec2("tag", &[&[id], tags].concat()).map(drop)
    }

    /// The id of an instance's first network interface.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn interface(&self, id: &str) -> Result<String> {
        self.ec2("interface", &[id])
    }

    /// Gives a network interface a secondary address that is nobody's.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`]: also when another interface has it.
    pub fn assign(&self, interface: &str, address: &str) -> Result<()> {
        self.ec2("assign", &[interface, address]).map(drop)
    }

    /// The private addresses of a network interface, its primary one first.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn addresses(&self, interface: &str) -> Result<Vec<String>> {
        Ok(self.ec2("addresses", &[interface])?.split_whitespace().map(str::to_owned).collect())
    }

    /// The running instances that have a tag, which is given as `KEY=VALUE`.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn tagged(&self, tag: &str) -> Result<Vec<String>> {
        Ok(self.ec2("tagged", &[tag])?.split_whitespace().map(str::to_owned).collect())
    }

    /// Makes a launch template of this name.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn make_template(&self, name: &str) -> Result<()> {
        self.ec2("template", &[name]).map(drop)
    }

    /// Stops an instance, which then can be started again.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn stop(&self, id: &str) -> Result<()> {
        self.ec2("stop", &[id]).map(drop)
    }

    /// Terminates an instance.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn terminate(&self, id: &str) -> Result<()> {
        self.ec2("terminate", &[id]).map(drop)
    }

    /// Makes a queue of SQS and returns its URL.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn make_queue(&self, name: &str) -> Result<String> {
        self.call(QUEUE, "make", &[name])
    }

    /// Puts a message into a queue.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn send(&self, queue: &str, body: &str) -> Result<()> {
        self.call(QUEUE, "send", &[queue, body]).map(drop)
    }

    /// How many messages of a queue can be had, and how many somebody has: `1 0`.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn count(&self, queue: &str) -> Result<String> {
        self.call(QUEUE, "count", &[queue])
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn make_bucket(&self, name: &str) -> Result<()> {
        self.s3("make", name).map(drop)
    }

    /// The objects of a bucket, by name, with their entity tags: that of an object that came in parts ends in `-` and their number.
    ///
    /// # Errors
    /// As for [`Moto::run_instance`].
    pub fn objects(&self, bucket: &str) -> Result<Vec<(String, String)>> {
        let said = self.s3("list", bucket)?;
        Ok(said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, tag)| (name.to_owned(), tag.to_owned()))
            .collect())
    }

    fn s3(&self, verb: &str, bucket: &str) -> Result<String> {
        self.call(BUCKET, verb, &[bucket])
    }

    fn ec2(&self, verb: &str, words: &[&str]) -> Result<String> {
        self.call(VERB, verb, words)
    }

    fn call(&self, program: &str, verb: &str, words: &[&str]) -> Result<String> {
        let python = self.place.join("bin/python").to_string_lossy().into_owned();
        let mut call = within(self.network.as_deref(), &python);
        let said = run(call.args(["-c", program, verb, &self.endpoint, REGION]).args(words))?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The program in that network, with this machine's files. No proxy of this machine stands between the two.
fn within(network: Option<&Path>, program: &str) -> std::process::Command {
    let mut command = match network {
        Some(network) => command("nsenter", [format!("--net={}", network.display()).as_str(), "--", program]),
        None => command::<[&str; 0], _>(program, []),
    };
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    command
}
