// Transactions of Apache Kafka's Java clients at the broker at args[0]: their producers' epoch is raised with each transaction
// (transaction version 2). Ends with 1 if any check failed.

import java.time.Duration;
import java.util.*;
import java.util.concurrent.ExecutionException;
import java.util.stream.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.errors.*;
import org.apache.kafka.common.serialization.*;

public class Transactions {
    static final long WAIT_MS_MAX = 30_000;
    static String bootstrap;

    interface Check { void run() throws Exception; }

    static final Map<String, Check> CHECKS = new LinkedHashMap<>();

    static {
        CHECKS.put("the_feature_is_there", Transactions::theFeatureIsThere);
        CHECKS.put("committed_and_aborted", Transactions::committedAndAborted);
        CHECKS.put("one_that_only_aborts", Transactions::oneThatOnlyAborts);
        CHECKS.put("the_one_before_is_fenced", Transactions::theOneBeforeIsFenced);
        CHECKS.put("records_and_offsets_together", Transactions::recordsAndOffsetsTogether);
        CHECKS.put("open_offsets_are_unstable", Transactions::openOffsetsAreUnstable);
        CHECKS.put("members_that_left_commit_nothing", Transactions::membersThatLeftCommitNothing);
        CHECKS.put("those_that_stay_open_are_aborted", Transactions::thoseThatStayOpenAreAborted);
        CHECKS.put("transactions_are_administered", Transactions::transactionsAreAdministered);
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

    static void theFeatureIsThere() throws Exception {
        try (var admin = admin()) {
            var features = admin.describeFeatures().featureMetadata().get();
            equal(features.finalizedFeatures().get("transaction.version").maxVersionLevel(), (short) 2, "finalized level");
        }
    }

    static void committedAndAborted() throws Exception {
        String topic = create("java-txn", 2);
        try (var producer = producer("java-a", Map.of())) {
            for (int i = 0; i < 20; i++) {
                producer.beginTransaction();
                for (int partition = 0; partition < 2; partition++) producer.send(new ProducerRecord<>(topic, partition, null, "" + i));
                if (i % 3 == 0) {
                    producer.flush();
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                }
            }
        }
        var committed = IntStream.range(0, 20).filter(i -> i % 3 != 0).mapToObj(i -> "" + i).toList();
        var all = IntStream.range(0, 20).mapToObj(i -> "" + i).toList();
        for (int partition = 0; partition < 2; partition++) {
            equal(values(topic, partition, "read_committed"), committed, "committed");
            equal(values(topic, partition, "read_uncommitted"), all, "all");
        }
    }

    static void oneThatOnlyAborts() throws Exception {
        String topic = create("java-aborts", 1);
        try (var producer = producer("java-aborts", Map.of())) {
            for (int i = 0; i < 3; i++) {
                producer.beginTransaction();
                producer.abortTransaction();
            }
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "x"));
            producer.commitTransaction();
            producer.beginTransaction();
            producer.commitTransaction();
        }
        equal(values(topic, 0, "read_committed"), List.of("x"), "committed");
    }

    static void theOneBeforeIsFenced() throws Exception {
        String topic = create("java-fenced", 1);
        try (var first = producer("java-f", Map.of())) {
            first.beginTransaction();
            first.send(new ProducerRecord<>(topic, "first"));
            first.flush();
            try (var second = producer("java-f", Map.of())) {
                second.beginTransaction();
                second.send(new ProducerRecord<>(topic, "second"));
                second.commitTransaction();
            }
            try {
                first.commitTransaction();
                throw new AssertionError("the first committed");
            } catch (ProducerFencedException | InvalidProducerEpochException expected) {
            }
        }
        equal(values(topic, 0, "read_committed"), List.of("second"), "committed");
    }

    static void recordsAndOffsetsTogether() throws Exception {
        String source = create("java-source", 1), sink = create("java-sink", 1), group = "java-loop";
        fill(source, 60);
        int done = 0;
        for (int round = 0; done < 60; round++) {
            // Each round by another, as after a crash.
            try (var producer = producer("java-loop", Map.of()); var consumer = consumer(group, "read_committed")) {
                consumer.subscribe(List.of(source));
                var read = new ArrayList<ConsumerRecord<String, String>>();
                waitFor("records", () -> {
                    consumer.poll(Duration.ofMillis(100)).forEach(read::add);
                    return read.size() >= 10;
                });
                producer.beginTransaction();
                var offsets = new HashMap<TopicPartition, OffsetAndMetadata>();
                for (var record : read.subList(0, 10)) {
                    producer.send(new ProducerRecord<>(sink, record.value() + "!"));
                    offsets.put(new TopicPartition(source, 0), new OffsetAndMetadata(record.offset() + 1));
                }
                producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
                if (round % 2 == 0) {
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                    done += 10;
                }
            }
        }
        equal(values(sink, 0, "read_committed"), IntStream.range(0, 60).mapToObj(i -> i + "!").toList(), "results");
        try (var admin = admin()) {
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            equal(offsets.get(new TopicPartition(source, 0)).offset(), 60L, "committed offset");
        }
    }

    static void openOffsetsAreUnstable() throws Exception {
        String source = create("java-unstable", 1), group = "java-unstable";
        fill(source, 10);
        var partition = new TopicPartition(source, 0);
        try (var producer = producer("java-unstable", Map.of()); var consumer = consumer(group, "read_committed")) {
            producer.beginTransaction();
            producer.sendOffsetsToTransaction(Map.of(partition, new OffsetAndMetadata(7)), new ConsumerGroupMetadata(group));
            consumer.assign(List.of(partition));
            try {
                consumer.committed(Set.of(partition), Duration.ofMillis(500));
                throw new AssertionError("offsets that are not decided were read");
            } catch (org.apache.kafka.common.errors.TimeoutException expected) {
            }
            producer.commitTransaction();
            equal(consumer.committed(Set.of(partition)).get(partition).offset(), 7L, "offset");
        }
    }

    static void membersThatLeftCommitNothing() throws Exception {
        String source = create("java-left", 1), group = "java-left";
        fill(source, 10);
        try (var producer = producer("java-left", Map.of())) {
            ConsumerGroupMetadata left;
            try (var consumer = consumer(group, "read_committed")) {
                consumer.subscribe(List.of(source));
                waitFor("records", () -> !consumer.poll(Duration.ofMillis(100)).isEmpty());
                left = consumer.groupMetadata();
            }
            producer.beginTransaction();
            var offsets = Map.of(new TopicPartition(source, 0), new OffsetAndMetadata(3));
            try {
                producer.sendOffsetsToTransaction(offsets, left);
                producer.commitTransaction();
                throw new AssertionError("a member that has left committed");
            } catch (CommitFailedException expected) {
                producer.abortTransaction();
            }
        }
        try (var admin = admin()) {
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            equal(offsets.get(new TopicPartition(source, 0)), null, "committed offset");
        }
    }

    static void thoseThatStayOpenAreAborted() throws Exception {
        String topic = create("java-late", 1);
        try (var producer = producer("java-late", Map.of("transaction.timeout.ms", "1000"))) {
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "late"));
            producer.flush();
            try (var admin = admin()) {
                waitFor("the abort", () -> state(admin, "java-late") == TransactionState.COMPLETE_ABORT);
            }
            fill(topic, 1);
            equal(values(topic, 0, "read_committed"), List.of("0"), "committed");
            try {
                producer.commitTransaction();
                throw new AssertionError("what was aborted committed");
            } catch (KafkaException expected) {
            }
        }
    }

    static void transactionsAreAdministered() throws Exception {
        String topic = create("java-admin", 2);
        var partition = new TopicPartition(topic, 1);
        try (var producer = producer("java-admin", Map.of()); var admin = admin()) {
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, 1, null, "x"));
            producer.flush();
            var described = admin.describeTransactions(List.of("java-admin")).description("java-admin").get();
            equal(described.state(), TransactionState.ONGOING, "state");
            equal(described.topicPartitions(), Set.of(partition), "partitions");
            equal(described.transactionTimeoutMs(), 60_000L, "timeout");
            equal(described.transactionStartTimeMs().isPresent(), true, "start");
            var options = new ListTransactionsOptions().filterStates(Set.of(TransactionState.ONGOING));
            var listed = admin.listTransactions(options).all().get().stream().map(TransactionListing::transactionalId).toList();
            equal(listed, List.of("java-admin"), "listed");
            options = new ListTransactionsOptions().filterOnTransactionalIdPattern("java-ad.*");
            listed = admin.listTransactions(options).all().get().stream().map(TransactionListing::transactionalId).toList();
            equal(listed, List.of("java-admin"), "by pattern");
            options = new ListTransactionsOptions().filterOnDuration(600_000);
            equal(admin.listTransactions(options.filterStates(Set.of(TransactionState.ONGOING))).all().get().size(), 0, "by duration");
            try {
                admin.describeTransactions(List.of("nobody")).description("nobody").get();
                throw new AssertionError("nobody was described");
            } catch (ExecutionException error) {
                equal(error.getCause().getClass(), TransactionalIdNotFoundException.class, "error");
            }
            admin.fenceProducers(List.of("java-admin")).all().get();
            try {
                producer.commitTransaction();
                throw new AssertionError("a fenced producer committed");
            } catch (ProducerFencedException | InvalidProducerEpochException expected) {
            }
            waitFor("the abort", () -> state(admin, "java-admin") != TransactionState.PREPARE_ABORT);
            equal(values(topic, 1, "read_committed"), List.of(), "committed");
            var producers = admin.describeProducers(List.of(partition)).partitionResult(partition).get().activeProducers();
            equal(producers.stream().allMatch(state -> state.currentTransactionStartOffset().isEmpty()), true, "none open");
        }
    }

    static TransactionState state(Admin admin, String id) throws Exception {
        return admin.describeTransactions(List.of(id)).description(id).get().state();
    }

    static Admin admin() { return Admin.create(Map.of("bootstrap.servers", bootstrap)); }

    static String create(String topic, int partitions) throws Exception {
        try (var admin = admin()) {
            admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1))).all().get();
        }
        return topic;
    }

    static KafkaProducer<String, String> producer(String id, Map<String, String> settings) {
        Map<String, Object> all = new HashMap<>(Map.of("bootstrap.servers", bootstrap));
        if (id != null) all.put("transactional.id", id);
        all.putAll(settings);
        var producer = new KafkaProducer<>(all, new StringSerializer(), new StringSerializer());
        if (id != null) producer.initTransactions();
        return producer;
    }

    static void fill(String topic, int count) {
        try (var producer = producer(null, Map.of())) {
            for (int i = 0; i < count; i++) producer.send(new ProducerRecord<>(topic, 0, null, "" + i));
        }
    }

    static KafkaConsumer<String, String> consumer(String group, String isolation) {
        return new KafkaConsumer<>(Map.of("bootstrap.servers", bootstrap, "group.id", group, "auto.offset.reset", "earliest",
            "enable.auto.commit", "false", "isolation.level", isolation), new StringDeserializer(), new StringDeserializer());
    }

    /** The values in a partition, as far as one who reads so may read. */
    static List<String> values(String topic, int index, String isolation) throws Exception {
        var partition = new TopicPartition(topic, index);
        try (var consumer = consumer("reader", isolation)) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            long end = consumer.endOffsets(List.of(partition)).get(partition);
            var values = new ArrayList<String>();
            waitFor("the end at " + end, () -> {
                consumer.poll(Duration.ofMillis(100)).forEach(record -> values.add(record.value()));
                return consumer.position(partition) >= end;
            });
            return values;
        }
    }

    static void equal(Object got, Object wanted, String what) {
        if (!Objects.equals(got, wanted)) throw new AssertionError(what + ": got " + got + ", wanted " + wanted);
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
