import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import org.redisson.Redisson;
import org.redisson.api.RLock;
import org.redisson.api.RedissonClient;
import org.redisson.config.Config;

/**
 * Redisson, doing the jobs that the driver does with the others: a line of JSON in, a line out. See src/job.rs for the words.
 *
 * <p>It only does and notes times (System.nanoTime); the driver judges. A worker is a thread, as Redisson's owners are. It ends when its
 * input does.
 */
public final class Peer {
  private static final ObjectMapper JSON = new ObjectMapper();

  private final ExecutorService threads = Executors.newCachedThreadPool();
  private List<RedissonClient> clients = List.of();
  private boolean plain;

  public static void main(String[] arguments) throws Exception {
    PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    // Whatever a library prints is not an answer.
    System.setOut(System.err);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    Peer peer = new Peer();
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      ObjectNode answer = JSON.createObjectNode();
      try {
        answer.set("ok", JSON.valueToTree(peer.answer(JSON.readTree(line))));
      } catch (Exception | StackOverflowError | OutOfMemoryError why) {
        answer.put("failed", String.valueOf(why));
      }
      out.println(answer);
      out.flush();
    }
    peer.close();
    System.exit(0);
  }

  private Object answer(JsonNode asked) throws Exception {
    switch (asked.get("op").asText()) {
      case "hello":
        return version();
      case "open":
        return open(asked);
      case "run":
        return run(asked);
      case "crowd":
        return crowd(asked.get("name").asText(), asked.get("readers").asInt());
      case "drops":
        return drops(asked);
      case "desert":
        return desert(asked);
      case "close":
        return close();
      default:
        throw new IllegalArgumentException("what is " + asked.get("op") + "?");
    }
  }

  /** By the name of its archive. */
  private static String version() throws Exception {
    Path archive = Path.of(Redisson.class.getProtectionDomain().getCodeSource().getLocation().toURI());
    return archive.getFileName().toString().replaceAll("^redisson-|\\.jar$", "");
  }

  private Object open(JsonNode asked) {
    close();
    plain = asked.get("plain").asBoolean();
    List<RedissonClient> opened = new ArrayList<>();
    for (int i = 0; i < asked.get("clients").asInt(); i++) {
      // Fewer threads and idle connections than by default (16, 32, 24): many clients share one small machine here.
      Config config = new Config().setThreads(4).setNettyThreads(4);
      config.setLockWatchdogTimeout(asked.get("lease_ms").asLong());
      config.useSingleServer().setAddress(asked.get("url").asText()).setConnectionMinimumIdleSize(2);
      opened.add(Redisson.create(config));
    }
    clients = opened;
    return null;
  }

  private Object close() {
    for (RedissonClient client : clients) {
      client.shutdown(0, 5, TimeUnit.SECONDS);
    }
    clients = List.of();
    return null;
  }

  private RLock lock(int client, String name, String mode) {
    RedissonClient redisson = clients.get(client);
    if (plain) {
      return redisson.getLock(name);
    }
    return mode.equals("read")
        ? redisson.getReadWriteLock(name).readLock()
        : redisson.getReadWriteLock(name).writeLock();
  }

  private Object run(JsonNode job) throws Exception {
    List<long[]> noted = new ArrayList<>();
    long end = System.nanoTime() + job.get("for_ms").asLong() * 1_000_000;
    long wait = job.get("wait_ms").asLong();
    long turns = job.get("turns").asLong();
    boolean shared = job.get("shared").asBoolean();
    Map<String, RLock> handles = new HashMap<>();
    List<Callable<List<long[]>>> workers = new ArrayList<>();
    List<RLock> locks = new ArrayList<>();
    for (JsonNode worker : job.get("workers")) {
      int number = workers.size();
      String key = worker.get("client").asInt() + " " + worker.get("mode") + worker.get("name");
      RLock known = shared ? handles.get(key) : null;
      RLock lock =
          known != null
              ? known
              : lock(worker.get("client").asInt(), worker.get("name").asText(), worker.get("mode").asText());
      handles.put(key, lock);
      locks.add(lock);
      workers.add(() -> work(number, worker, lock, turns, end, wait));
    }
    int from = 0;
    long asked = 0;
    long granted = 0;
    boolean settles = !job.get("settle_us").isNull();
    if (settles) {
      asked = System.nanoTime();
      if (!locks.get(0).tryLock(wait, TimeUnit.MILLISECONDS)) {
        throw new IllegalStateException("the first was not let in");
      }
      granted = System.nanoTime();
      from = 1;
    }
    List<Future<List<long[]>>> running = new ArrayList<>();
    for (Callable<List<long[]>> worker : workers.subList(from, workers.size())) {
      running.add(threads.submit(worker));
    }
    if (settles) {
      pause(job.get("settle_us").asLong());
      long leaving = System.nanoTime();
      locks.get(0).unlock();
      noted.add(new long[] {0, asked, granted, leaving, System.nanoTime()});
    }
    for (Future<List<long[]>> worker : running) {
      noted.addAll(worker.get());
    }
    return noted;
  }

  private static List<long[]> work(int number, JsonNode worker, RLock lock, long turns, long end, long wait)
      throws InterruptedException {
    pause(worker.get("start_us").asLong());
    long hold = worker.get("hold_us").asLong();
    long rest = worker.get("rest_us").asLong();
    List<long[]> noted = new ArrayList<>();
    for (long turn = 0; turn < turns && System.nanoTime() < end; turn++) {
      long asked = System.nanoTime();
      if (!lock.tryLock(wait, TimeUnit.MILLISECONDS)) {
        long left = System.nanoTime();
        noted.add(new long[] {number, asked, 0, left, left});
        continue;
      }
      long granted = System.nanoTime();
      pause(hold);
      long leaving = System.nanoTime();
      lock.unlock();
      noted.add(new long[] {number, asked, granted, leaving, System.nanoTime()});
      pause(rest);
    }
    return noted;
  }

  /** Many owners in one thread: their ids are made up. */
  private Object crowd(String name, int readers) throws Exception {
    RLock lock = lock(0, name, "read");
    for (int first = 0; first < readers; first += 100) {
      List<Future<Void>> entering = new ArrayList<>();
      for (int i = first; i < Math.min(first + 100, readers); i++) {
        entering.add(lock.lockAsync(1_000_000L + i).toCompletableFuture());
      }
      for (Future<Void> entered : entering) {
        entered.get(30, TimeUnit.SECONDS);
      }
    }
    return null;
  }

  /** A thread that acquires is interrupted: what Java calls to drop a future. */
  private Object drops(JsonNode drops) throws Exception {
    int count = drops.get("count").asInt();
    long within = drops.get("within_us").asLong() * 1000;
    List<Integer> names = new ArrayList<>();
    for (int number = 0; number < count * 10 && names.size() < count; number++) {
      RLock lock = lock(0, drops.get("name").asText() + number, drops.get("mode").asText());
      Thread[] thread = new Thread[1];
      boolean[] begun = new boolean[1];
      Future<Boolean> acquiring =
          threads.submit(
              () -> {
                synchronized (begun) {
                  thread[0] = Thread.currentThread();
                  begun[0] = true;
                  begun.notifyAll();
                }
                try {
                  lock.lockInterruptibly();
                } catch (InterruptedException | RuntimeException interrupted) {
                  // A call that is under way when its thread is interrupted ends in a RedisException.
                  return false;
                }
                synchronized (begun) {
                  begun[0] = false; // From here on nobody interrupts it.
                  Thread.interrupted();
                }
                lock.unlock();
                return true;
              });
      synchronized (begun) {
        while (thread[0] == null) {
          begun.wait();
        }
      }
      long until = System.nanoTime() + ThreadLocalRandom.current().nextLong(within + 1);
      while (System.nanoTime() < until) {
        Thread.onSpinWait();
      }
      synchronized (begun) {
        if (begun[0]) {
          thread[0].interrupt();
        }
      }
      boolean entered = acquiring.get(30, TimeUnit.SECONDS);
      if (!entered) {
        names.add(number);
      }
    }
    return Map.of("names", names);
  }

  private Object desert(JsonNode desertion) throws Exception {
    String name = desertion.get("name").asText();
    long wait = desertion.get("wait_ms").asLong();
    RLock held = lock(0, name, "write");
    if (!held.tryLock(wait, TimeUnit.MILLISECONDS)) {
      throw new IllegalStateException("the holder was not let in");
    }
    List<Future<?>> waiting = new ArrayList<>();
    for (int i = 0; i < desertion.get("waiters").asInt(); i++) {
      RLock lock = lock(1, name, "write");
      waiting.add(
          threads.submit(
              () -> {
                lock.lockInterruptibly();
                return null;
              }));
    }
    List<Long> patience = new ArrayList<>();
    for (int i = 0; i < waiting.size(); i++) {
      patience.add(ThreadLocalRandom.current().nextLong(1, 201));
    }
    patience.sort(null);
    long begun = System.nanoTime();
    for (int i = 0; i < waiting.size(); i++) {
      pause((begun + patience.get(i) * 1_000_000 - System.nanoTime()) / 1000);
      waiting.get(i).cancel(true);
    }
    pause(100_000);
    RLock newcomer = lock(2, name, desertion.get("mode").asText());
    held.unlock();
    long asked = System.nanoTime();
    boolean entered = newcomer.tryLock(wait, TimeUnit.MILLISECONDS);
    double took = (System.nanoTime() - asked) / 1e6;
    if (entered) {
      newcomer.unlock();
    }
    return entered ? took : null;
  }

  private static void pause(long micros) {
    long until = System.nanoTime() + micros * 1000;
    for (long left = micros * 1000; left > 0; left = until - System.nanoTime()) {
      LockSupport.parkNanos(left);
    }
  }
}
