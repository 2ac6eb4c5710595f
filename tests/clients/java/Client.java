// Apache Kafka's Java clients against the broker at args[0]: named checks that all run in one JVM.
// Ends with 1 if any failed.

import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.stream.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.message.*;
import org.apache.kafka.common.protocol.Errors;
import org.apache.kafka.common.requests.*;
import org.apache.kafka.common.serialization.*;

public class Client {
    static final long WAIT_MS_MAX = 30_000;
    static String bootstrap;

    interface Check { void run() throws Exception; }

    static final Map<String, Check> CHECKS = new LinkedHashMap<>();

    static {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            CHECKS.put("records_travel_whole_" + codec, () -> recordsTravelWhole(codec));
        }
        CHECKS.put("acks_zero_and_one", Client::acksZeroAndOne);
        CHECKS.put("many_batches_keep_their_order", Client::manyBatchesKeepTheirOrder);
        CHECKS.put("a_record_that_is_too_large_is_refused", Client::aRecordThatIsTooLargeIsRefused);
        CHECKS.put("a_keyless_record_on_a_compacted_topic_is_refused", Client::aKeylessRecordOnACompactedTopicIsRefused);
        CHECKS.put("log_append_time_is_the_brokers", Client::logAppendTimeIsTheBrokers);
        CHECKS.put("a_group_resumes_where_it_committed", Client::aGroupResumesWhereItCommitted);
        CHECKS.put("two_members_share_and_hand_over", () -> twoMembersShareAndHandOver(false));
        CHECKS.put("static_members_come_back_without_a_rebalance", () -> twoMembersShareAndHandOver(true));
        CHECKS.put("offsets_are_found_by_time", Client::offsetsAreFoundByTime);
        CHECKS.put("topics_are_administered", Client::topicsAreAdministered);
        CHECKS.put("a_topic_made_anew_is_another_topic", Client::aTopicMadeAnewIsAnotherTopic);
        CHECKS.put("groups_are_administered", Client::groupsAreAdministered);
        CHECKS.put("offsets_of_a_group_are_altered", Client::offsetsOfAGroupAreAltered);
        CHECKS.put("a_consumer_commits_by_topic_id", Client::aConsumerCommitsByTopicId);
        CHECKS.put("offsets_are_kept_by_topic_id", Client::offsetsAreKeptByTopicId);
        CHECKS.put("log_directories_are_described", Client::logDirectoriesAreDescribed);
    }

    public static void main(String[] args) {
        bootstrap = args[0];
        int failed = 0;
        for (var check : CHECKS.entrySet()) {
            long start = System.nanoTime();
            try {
                check.getValue().run();
                System.out.printf("ok   %s (%.1f s)%n", check.getKey(), (System.nanoTime() - start) / 1e9);
            } catch (Throwable error) {
                failed++;
                System.out.println("FAIL " + check.getKey());
                System.out.println(error);
                Arrays.stream(error.getStackTrace()).limit(12).forEach(frame -> System.out.println("    " + frame));
                if (error.getCause() != null) System.out.println("  because " + error.getCause());
            }
        }
        System.exit(failed == 0 ? 0 : 1);
    }

    static void recordsTravelWhole(String codec) throws Exception {
        String topic = create("java-" + codec, 1, Map.of());
        List<ProducerRecord<byte[], byte[]>> records = records(topic, 500);
        equal(produce(records, Map.of("compression.type", codec)), offsets(0, 500), "offsets");
        var read = readAll(topic, 500);
        for (int i = 0; i < 500; i++) {
            equal(text(read.get(i).key()), text(records.get(i).key()), "key " + i);
            equal(text(read.get(i).value()), text(records.get(i).value()), "value " + i);
            equal(List.of(read.get(i).headers().toArray()), List.of(records.get(i).headers().toArray()), "headers " + i);
        }
    }

    static void acksZeroAndOne() throws Exception {
        for (String acks : List.of("0", "1")) {
            String topic = create("java-acks-" + acks, 1, Map.of());
            produce(records(topic, 50), Map.of("acks", acks, "enable.idempotence", "false"));
            readAll(topic, 50);
        }
    }

    static void manyBatchesKeepTheirOrder() throws Exception {
        String topic = create("java-order", 1, Map.of());
        equal(produce(records(topic, 5000), Map.of("batch.size", "400", "linger.ms", "0")), offsets(0, 5000), "offsets");
        var read = readAll(topic, 5000);
        for (int i = 7; i < 5000; i++) equal(text(read.get(i).key()), "k" + i, "key " + i);
    }

    static void aRecordThatIsTooLargeIsRefused() throws Exception {
        String topic = create("java-large", 1, Map.of("max.message.bytes", "1000"));
        refused(RecordTooLargeException.class, () -> produce(List.of(record(topic, "k", "x".repeat(2000))), Map.of()));
    }

    static void aKeylessRecordOnACompactedTopicIsRefused() throws Exception {
        String topic = create("java-compacted", 1, Map.of("cleanup.policy", "compact"));
        refused(InvalidRecordException.class, () -> produce(List.of(record(topic, null, "v")), Map.of()));
        equal(produce(List.of(record(topic, "k", "v")), Map.of()), offsets(0, 1), "offsets");
    }

    static void logAppendTimeIsTheBrokers() throws Exception {
        String topic = create("java-append-time", 1, Map.of("message.timestamp.type", "LogAppendTime"));
        long before = System.currentTimeMillis();
        produce(List.of(new ProducerRecord<>(topic, 0, 1L, bytes("k"), bytes("v"))), Map.of());
        var read = readAll(topic, 1).get(0);
        equal(read.timestampType().toString(), "LogAppendTime", "timestamp type");
        equal(read.timestamp() >= before && read.timestamp() <= System.currentTimeMillis(), true, "timestamp " + read.timestamp());
    }

    static void aGroupResumesWhereItCommitted() throws Exception {
        String topic = create("java-group", 1, Map.of());
        produce(records(topic, 100), Map.of());
        var partition = new TopicPartition(topic, 0);
        try (var first = consumer("java-group-g", Map.of())) {
            first.subscribe(List.of(topic));
            consume(first, 60);
            first.commitSync(Map.of(partition, new OffsetAndMetadata(60, Optional.of(0), "note")));
        }
        try (var second = consumer("java-group-g", Map.of())) {
            second.subscribe(List.of(topic));
            equal(consume(second, 40).stream().map(ConsumerRecord::offset).toList(), offsets(60, 100), "offsets after resuming");
            var committed = second.committed(Set.of(partition)).get(partition);
            equal(committed.offset() + committed.metadata(), "60note", "committed");
        }
    }

    static void twoMembersShareAndHandOver(boolean named) throws Exception {
        String topic = create("java-members-" + named, 4, Map.of());
        Map<String, String> first = named ? Map.of("group.instance.id", "one") : Map.of();
        Map<String, String> second = named ? Map.of("group.instance.id", "two") : Map.of();
        var one = consumer(topic + "-g", first);
        try (var two = consumer(topic + "-g", second)) {
            one.subscribe(List.of(topic));
            two.subscribe(List.of(topic));
            waitFor("two partitions each", () -> {
                one.poll(Duration.ofMillis(50));
                two.poll(Duration.ofMillis(50));
                return one.assignment().size() == 2 && two.assignment().size() == 2;
            });
            var both = new HashSet<>(one.assignment());
            both.addAll(two.assignment());
            equal(both.size(), 4, "partitions of both");
            if (named) {
                var mine = one.assignment();
                one.close();
                try (var again = consumer(topic + "-g", first)) {
                    again.subscribe(List.of(topic));
                    waitFor("the same partitions again", () -> {
                        again.poll(Duration.ofMillis(50));
                        two.poll(Duration.ofMillis(50));
                        return again.assignment().equals(mine);
                    });
                    equal(two.assignment().size(), 2, "partitions of the other");
                }
            } else {
                one.close();
                waitFor("all partitions with the one that stayed", () -> {
                    two.poll(Duration.ofMillis(50));
                    return two.assignment().size() == 4;
                });
            }
        }
    }

    static void offsetsAreFoundByTime() throws Exception {
        String topic = create("java-times", 1, Map.of());
        long base = 1_700_000_000_000L;
        var records = IntStream.range(0, 100)
            .mapToObj(i -> new ProducerRecord<>(topic, 0, base + (i == 50 ? 500_000 : i * 1000L), bytes("k"), bytes("v"))).toList();
        produce(records, Map.of());
        var partition = new TopicPartition(topic, 0);
        try (var consumer = consumer(null, Map.of()); var admin = admin()) {
            var found = consumer.offsetsForTimes(Map.of(partition, base + 41_001)).get(partition);
            equal(found.offset() + " " + found.timestamp(), "42 " + (base + 42_000), "offset and time");
            equal(consumer.offsetsForTimes(Map.of(partition, base + 600_000)).get(partition), null, "a time after the end");
            equal(consumer.endOffsets(Set.of(partition)), Map.of(partition, 100L), "end");
            var latest = admin.listOffsets(Map.of(partition, OffsetSpec.maxTimestamp())).partitionResult(partition).get();
            equal(latest.offset() + " " + latest.timestamp(), "50 " + (base + 500_000), "record with the greatest time");
            var empty = new TopicPartition(create("java-times-empty", 1, Map.of()), 0);
            equal(admin.listOffsets(Map.of(empty, OffsetSpec.maxTimestamp())).partitionResult(empty).get().offset(), -1L, "of nothing");
        }
    }

    static void topicsAreAdministered() throws Exception {
        String topic = create("java-admin", 3, Map.of("retention.ms", "3600000"));
        try (var admin = admin()) {
            refused(TopicExistsException.class, () -> create(topic, 1, Map.of()));
            refused(InvalidConfigurationException.class, () -> create("java-admin-bad", 1, Map.of("retention.ms", "soon")));
            refused(InvalidTopicException.class, () -> create("java admin", 1, Map.of()));
            refused(InvalidPartitionsException.class, () -> create("java-admin-0", 0, Map.of()));
            equal(admin.listTopics().names().get().contains("java-admin-bad"), false, "a refused topic is not there");
            var description = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            equal(description.partitions().size(), 3, "partitions");
            equal(description.partitions().get(0).isr().size(), 1, "in-sync replicas");
            var byId = TopicCollection.ofTopicIds(List.of(description.topicId()));
            equal(admin.describeTopics(byId).allTopicIds().get().get(description.topicId()).name(), topic, "name by id");
            var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            var config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
            equal(config.get("retention.ms").value(), "3600000", "retention.ms");
            equal(config.get("retention.ms").source(), ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG, "its source");
            for (String name : List.of("cleanup.policy", "segment.bytes", "max.message.bytes", "min.insync.replicas", "flush.messages")) {
                equal(config.get(name) != null && config.get(name).value() != null, true, name + " has a value");
                equal(config.get(name).type() != ConfigEntry.ConfigType.UNKNOWN, true, name + " has a type");
            }
            admin.deleteTopics(List.of(topic)).all().get();
            waitFor("the topic to go", () -> !admin.listTopics().names().get().contains(topic));
            refused(UnknownTopicOrPartitionException.class, () -> admin.deleteTopics(List.of(topic)).all().get());
        }
    }

    static void aTopicMadeAnewIsAnotherTopic() throws Exception {
        try (var admin = admin()) {
            String topic = create("java-anew", 1, Map.of());
            Uuid before = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).topicId();
            produce(records(topic, 10), Map.of());
            admin.deleteTopics(List.of(topic)).all().get();
            waitFor("the topic to go", () -> !admin.listTopics().names().get().contains(topic));
            create(topic, 1, Map.of());
            equal(before.equals(admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).topicId()), false, "same id");
            equal(produce(records(topic, 5), Map.of()), offsets(0, 5), "offsets");
        }
    }

    static void groupsAreAdministered() throws Exception {
        String topic = create("java-groups", 1, Map.of());
        produce(records(topic, 10), Map.of());
        try (var admin = admin(); var consumer = consumer("java-groups-g", Map.of())) {
            consumer.subscribe(List.of(topic));
            consume(consumer, 10);
            consumer.commitSync();
            var group = admin.describeConsumerGroups(List.of("java-groups-g")).all().get().get("java-groups-g");
            equal(group.groupState(), GroupState.STABLE, "state");
            equal(group.members().iterator().next().assignment().topicPartitions(), Set.of(new TopicPartition(topic, 0)), "assignment");
            equal(admin.listGroups().all().get().stream().anyMatch(g -> g.groupId().equals("java-groups-g")), true, "listed");
            var committed = admin.listConsumerGroupOffsets("java-groups-g").partitionsToOffsetAndMetadata().get();
            equal(committed.get(new TopicPartition(topic, 0)).offset(), 10L, "committed");
        }
    }

    static void offsetsOfAGroupAreAltered() throws Exception {
        String topic = create("java-altered", 1, Map.of()), group = "java-altered-g";
        var partition = new TopicPartition(topic, 0);
        try (var admin = admin()) {
            admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(3, "by hand"))).all().get();
            equal(committed(admin, group), Map.of(partition, new OffsetAndMetadata(3, "by hand")), "altered");
            var unknown = Map.of(new TopicPartition("java-nowhere", 0), new OffsetAndMetadata(3));
            refused(UnknownTopicOrPartitionException.class, () -> admin.alterConsumerGroupOffsets(group, unknown).all().get());
            admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get();
            equal(committed(admin, group), Map.of(), "deleted");
            admin.deleteConsumerGroups(List.of(group)).all().get();
            refused(GroupIdNotFoundException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
        }
    }

    /** The consumer of KIP-848 says version 10; it needs no group of its kind as long as it does not subscribe. */
    static void aConsumerCommitsByTopicId() throws Exception {
        String topic = create("java-by-id", 1, Map.of()), group = "java-by-id-g";
        produce(records(topic, 10), Map.of());
        var partition = new TopicPartition(topic, 0);
        var settings = Map.of("group.protocol", "consumer");
        for (int round = 0; round < 2; round++) {
            try (var consumer = consumer(group, settings)) {
                consumer.assign(List.of(partition));
                consume(consumer, 10 - 4 * round);
                consumer.commitSync(Map.of(partition, new OffsetAndMetadata(4, "fourth")));
                equal(consumer.committed(Set.of(partition)), Map.of(partition, new OffsetAndMetadata(4, "fourth")), "committed");
            }
        }
        try (var admin = admin()) {
            equal(committed(admin, group), Map.of(partition, new OffsetAndMetadata(4, "fourth")), "by name");
        }
    }

    static void offsetsAreKeptByTopicId() throws Exception {
        String topic = create("java-ids", 1, Map.of()), group = "java-ids-g";
        try (var admin = admin()) {
            Uuid old = idOf(admin, topic), unknown = Uuid.randomUuid();
            coordinatorOf(admin, group);
            equal(commitById(group, old, 5, 0), Errors.NONE, "a commit");
            equal(commitById(group, old, 5, 7), Errors.UNKNOWN_TOPIC_OR_PARTITION, "of a partition that is not there");
            equal(commitById(group, unknown, 5, 0), Errors.UNKNOWN_TOPIC_ID, "of an unknown id");
            equal(fetchById(group, List.of(old, unknown)), old + " 5 NONE, " + unknown + " -1 UNKNOWN_TOPIC_ID", "of both");
            equal(fetchById(group, null), old + " 5 NONE", "of all");
            admin.deleteTopics(List.of(topic)).all().get();
            waitFor("the topic to go", () -> !admin.listTopics().names().get().contains(topic));
            create(topic, 1, Map.of());
            Uuid anew = idOf(admin, topic);
            equal(commitById(group, old, 6, 0), Errors.UNKNOWN_TOPIC_ID, "a commit to the old topic");
            equal(fetchById(group, List.of(anew, old)), anew + " -1 NONE, " + old + " -1 UNKNOWN_TOPIC_ID", "of the new topic");
            equal(commitById(group, anew, 1, 0), Errors.NONE, "a commit to the new topic");
            equal(fetchById(group, null), anew + " 1 NONE", "of all, again");
        }
    }

    static void logDirectoriesAreDescribed() throws Exception {
        String topic = create("java-dirs", 1, Map.of());
        produce(records(topic, 10), Map.of());
        try (var admin = admin()) {
            int node = admin.describeCluster().controller().get().id();
            var directories = admin.describeLogDirs(List.of(node)).allDescriptions().get().get(node);
            equal(directories.size(), 1, "directories");
            var directory = directories.values().iterator().next();
            equal(directory.replicaInfos().get(new TopicPartition(topic, 0)).size() > 0, true, "size");
            equal(directory.totalBytes().getAsLong() > 0, true, "size of the file system");
            equal(directory.isCordoned(), false, "cordoned");
        }
    }

    // What the checks stand on.

    static Uuid idOf(Admin admin, String topic) throws Exception {
        return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).topicId();
    }

    static Map<TopicPartition, OffsetAndMetadata> committed(Admin admin, String group) throws Exception {
        return admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
    }

    /** Asking for a group's coordinator is what makes the offsets topic. */
    static void coordinatorOf(Admin admin, String group) throws Exception {
        admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
    }

    static Errors commitById(String group, Uuid topic, long offset, int partition) throws Exception {
        var committed = new OffsetCommitRequestData.OffsetCommitRequestPartition().setPartitionIndex(partition).setCommittedOffset(offset);
        var request = new OffsetCommitRequestData().setGroupId(group).setTopics(List.of(
            new OffsetCommitRequestData.OffsetCommitRequestTopic().setTopicId(topic).setPartitions(List.of(committed))));
        var answer = (OffsetCommitResponse) ask(OffsetCommitRequest.Builder.forTopicIdsOrNames(request).build((short) 10));
        var answered = answer.data().topics().get(0);
        equal(answered.topicId(), topic, "id in the answer");
        return Errors.forCode(answered.partitions().get(0).errorCode());
    }

    /** Id, offset and error of partition 0 of each topic; null for all topics. */
    static String fetchById(String group, List<Uuid> topics) throws Exception {
        var wanted = topics == null ? null : topics.stream().map(topic ->
            new OffsetFetchRequestData.OffsetFetchRequestTopics().setTopicId(topic).setPartitionIndexes(List.of(0))).toList();
        var request = new OffsetFetchRequestData().setGroups(List.of(
            new OffsetFetchRequestData.OffsetFetchRequestGroup().setGroupId(group).setTopics(wanted)));
        var answer = (OffsetFetchResponse) ask(OffsetFetchRequest.Builder.forTopicIdsOrNames(request, true).build((short) 10));
        return answer.data().groups().get(0).topics().stream().map(topic -> {
            var partition = topic.partitions().get(0);
            return topic.topicId() + " " + partition.committedOffset() + " " + Errors.forCode(partition.errorCode());
        }).collect(Collectors.joining(", "));
    }

    /** Sends one request on a connection of its own. */
    static AbstractResponse ask(AbstractRequest request) throws Exception {
        var header = new RequestHeader(request.apiKey(), request.version(), "java", 1);
        String[] address = bootstrap.split(":");
        try (var socket = new java.net.Socket(address[0], Integer.parseInt(address[1]))) {
            socket.setSoTimeout((int) WAIT_MS_MAX);
            ByteBuffer frame = request.serializeWithHeader(header);
            var out = new java.io.DataOutputStream(new java.io.BufferedOutputStream(socket.getOutputStream()));
            out.writeInt(frame.remaining());
            out.write(frame.array(), frame.arrayOffset() + frame.position(), frame.remaining());
            out.flush();
            var in = new java.io.DataInputStream(socket.getInputStream());
            return AbstractResponse.parseResponse(ByteBuffer.wrap(in.readNBytes(in.readInt())), header);
        }
    }

    static Admin admin() { return Admin.create(Map.of("bootstrap.servers", bootstrap)); }

    static String create(String topic, int partitions, Map<String, String> config) throws Exception {
        try (var admin = admin()) {
            admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(config))).all().get();
            // A broker may learn of the topic a moment after the controller has answered.
            waitFor("the topic to be known", () -> admin.listTopics().names().get().contains(topic));
        }
        return topic;
    }

    static List<Long> produce(List<ProducerRecord<byte[], byte[]>> records, Map<String, String> settings) throws Exception {
        Map<String, Object> all = new HashMap<>(Map.of("bootstrap.servers", bootstrap, "linger.ms", "20"));
        all.putAll(settings);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (var producer = new KafkaProducer<>(all, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (var record : records) sent.add(producer.send(record));
        }
        List<Long> offsets = new ArrayList<>();
        for (var one : sent) offsets.add(one.get().offset());
        return offsets;
    }

    static KafkaConsumer<byte[], byte[]> consumer(String group, Map<String, String> settings) {
        Map<String, Object> all = new HashMap<>(Map.of("bootstrap.servers", bootstrap, "auto.offset.reset", "earliest",
            "enable.auto.commit", "false", "session.timeout.ms", "10000", "heartbeat.interval.ms", "200"));
        if (group != null) all.put("group.id", group);
        all.putAll(settings);
        // These are the broker's to say then (KIP-848).
        if (settings.containsKey("group.protocol")) all.keySet().removeAll(Set.of("session.timeout.ms", "heartbeat.interval.ms"));
        return new KafkaConsumer<>(all, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static List<ConsumerRecord<byte[], byte[]>> consume(KafkaConsumer<byte[], byte[]> consumer, int count) throws Exception {
        List<ConsumerRecord<byte[], byte[]>> read = new ArrayList<>();
        waitFor(count + " records", () -> {
            consumer.poll(Duration.ofMillis(100)).forEach(read::add);
            return read.size() >= count;
        });
        return read;
    }

    static List<ConsumerRecord<byte[], byte[]>> readAll(String topic, int count) throws Exception {
        try (var consumer = consumer(null, Map.of())) {
            consumer.assign(List.of(new TopicPartition(topic, 0)));
            var read = consume(consumer, count);
            equal(consumer.poll(Duration.ofMillis(100)).count() + read.size(), count, "records");
            return read;
        }
    }

    /** Records with nulls, empties, and header keys that repeat; from the eighth on k7, k8, … */
    static List<ProducerRecord<byte[], byte[]>> records(String topic, int count) {
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        records.add(record(topic, "key", "value"));
        records.add(record(topic, null, "no key"));
        records.add(record(topic, "tombstone", null));
        records.add(record(topic, null, null));
        records.add(record(topic, "", ""));
        records.add(record(topic, "k", "repeat"));
        for (String value : List.of("1", "2", "1")) records.get(5).headers().add(new RecordHeader("a", bytes(value)));
        records.get(5).headers().add(new RecordHeader("nothing", null));
        records.add(record(topic, "k", "one header"));
        records.get(6).headers().add(new RecordHeader("h", new byte[0]));
        for (int i = 7; i < count; i++) records.add(record(topic, "k" + i, ("v" + i).repeat(20)));
        return records.subList(0, count);
    }

    static ProducerRecord<byte[], byte[]> record(String topic, String key, String value) {
        return new ProducerRecord<>(topic, 0, bytes(key), bytes(value));
    }

    static byte[] bytes(String text) { return text == null ? null : text.getBytes(); }

    static String text(byte[] bytes) { return bytes == null ? null : new String(bytes); }

    static List<Long> offsets(long from, long to) { return LongStream.range(from, to).boxed().toList(); }

    static void equal(Object got, Object wanted, String what) {
        if (!Objects.equals(got, wanted)) throw new AssertionError(what + ": got " + shorten(got) + ", wanted " + shorten(wanted));
    }

    static String shorten(Object value) {
        String text = String.valueOf(value);
        return text.length() < 600 ? text : text.substring(0, 600) + "…";
    }

    static void refused(Class<? extends Exception> wanted, Check check) throws Exception {
        try {
            check.run();
        } catch (ExecutionException error) {
            if (wanted.isInstance(error.getCause())) return;
            throw error;
        }
        throw new AssertionError("not refused with " + wanted.getSimpleName());
    }

    interface Question { boolean ask() throws Exception; }

    static void waitFor(String what, Question question) throws Exception {
        long deadline = System.currentTimeMillis() + WAIT_MS_MAX;
        while (!question.ask()) {
            if (System.currentTimeMillis() > deadline) throw new AssertionError("not after " + WAIT_MS_MAX + " ms: " + what);
            Thread.sleep(10);
        }
    }
}
