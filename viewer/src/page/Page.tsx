import { useEffect, useRef, useState } from "preact/hooks";
import { Results } from "../components/ReportView";
import { Banner, Logo, Notes } from "../components/Header";
import { count } from "../format";
import { ViewerState } from "../state";
import { getExample, getJson, inspect, Refusal, type Catalogue, type Examples, type Inquiry, type Progress, type ServedProfile } from "./api";
import { DropBox } from "./DropBox";
import { MethodChoice } from "./MethodChoice";
import { ProfileChoice } from "./ProfileChoice";
import { lacks, recommend } from "./methods";
import { SaveProfile } from "./SaveProfile";
import { SingleResult } from "./SingleResult";

type Errors = Partial<Record<"images" | "object" | "method" | "form", string>>;
const MAX_NAME = 80;
/** Fewest known-good images that give a threshold. */
const MIN_GOOD = 3;

/** The page: images in, results in the viewer out. */
export function Page() {
  const [catalogue, setCatalogue] = useState<Catalogue | null>(null), [images, setImages] = useState<File[]>([]), [good, setGood] = useState<File[]>([]);
  const [object, setObject] = useState(""), [method, setMethod] = useState("automatic"), [compared, setCompared] = useState(["anoclip", "dual-image", "mutual"]), [model, setModel] = useState("");
  const [served, setServed] = useState<ServedProfile[]>([]), [profile, setProfile] = useState<File | ServedProfile | null>(null), [used, setUsed] = useState<Inquiry | null>(null);
  const [errors, setErrors] = useState<Errors>({}), [progress, setProgress] = useState<Progress | null>(null), [said, setSaid] = useState("");
  const [state, setState] = useState<ViewerState | null>(null), running = useRef<AbortController | null>(null), status = useRef<HTMLDivElement>(null);
  useEffect(() => {
    Promise.all([getJson<Catalogue>("/v1/models"), getJson<ServedProfile[]>("/v1/profiles")])
      .then(([found, profiles]) => { setCatalogue(found); setModel(found.models[0].name); setServed(profiles); setProfile(profiles[0] ?? null); })
      .catch((error: Error) => setErrors({ form: error.message }));
  }, []);
  useEffect(() => {
    const box = status.current!.getBoundingClientRect(); // on a phone the results are below the form
    if (state && (box.top > innerHeight / 2 || box.top < 0)) status.current!.scrollIntoView({ behavior: "smooth", block: "start" });
  }, [state]);
  const objectNote = catalogue?.models.find((one) => one.name === model)?.object_note;
  const info = (name: string) => catalogue?.methods.find((one) => one.name === name);
  const methodsFor = (given: File[], references: File[]): { methods: string[]; left: string[] } => {
    if (method === "automatic") return { methods: [recommend(given.length, references.length).method], left: [] };
    const wanted = method === "several" ? compared : [method];
    const can = (name: string): boolean => { const one = info(name); return !one || lacks(one, given.length, references.length) === null; };
    return { methods: wanted.filter(can), left: wanted.filter((name) => !can(name)) };
  };
  const start = async (given = images, references = good, name = object, product = profile): Promise<void> => {
    const { methods, left } = methodsFor(given, references), found: Errors = {};
    if (!given.length) found.images = "Drop or choose an image first, or press an example.";
    if (!product && !name.trim()) found.object = "Name the object in the images.";
    if (!product && given.length && !methods.length) found.method = left.length ? `${left.join(", ")}: ${lacks(info(left[0])!, given.length, references.length)}.` : "Choose at least one method.";
    setErrors(found);
    if (Object.keys(found).length) return;
    running.current?.abort();
    const controller = (running.current = new AbortController());
    setProgress({ stage: "sending the images", done: 0, total: 0, seconds: 0 });
    status.current?.scrollIntoView({ behavior: "smooth", block: "start" });
    try {
      const inquiry: Inquiry = { object: name, methods, model, images: given, good: references, profile: product };
      const source = await inspect(inquiry, setProgress, controller.signal);
      state?.source.release?.();
      setState(new ViewerState(source, null));
      setUsed(inquiry);
      const how = product ? `the profile ${product.name}` : `${methods.join(", ")} on ${model}`;
      const without = !product && left.length ? ` Without ${left.join(", ")}: ${lacks(info(left[0])!, given.length, references.length)}.` : "";
      setSaid(`${count(given.length, "image")} with ${how} in ${source.report.seconds.toFixed(1)} s.${without}`);
      if (source.report.failed === given.length) setErrors({ form: source.report.errors.map(([file, reason]) => `${file}: ${reason}`).join("\n") });
    } catch (error) {
      if (controller.signal.aborted) setSaid("Stopped.");
      else setErrors({ form: error instanceof Refusal ? error.message : `The service cannot be reached: ${(error as Error).message}` });
    } finally {
      if (running.current === controller) running.current = null, setProgress(null);
    }
  };
  const example = async (kind: "one" | "pair" | "set"): Promise<void> => {
    try {
      const list = await getJson<Examples>("/v1/examples"), defect = list.images.filter((name) => !name.includes("good"));
      const get = (names: string[]): Promise<File[]> => Promise.all(names.map(getExample));
      const given = await get(kind === "set" ? list.images : defect.slice(0, 1)), references = await get(kind === "one" ? [] : kind === "pair" ? list.good.slice(0, 1) : list.good);
      setImages(given);
      setGood(references);
      setObject(list.object);
      setMethod("automatic");
      setProfile(null);
      await start(given, references, list.object, null);
    } catch (error) {
      setErrors({ form: (error as Error).message });
    }
  };
  return <>
    <div class="stripe" />
    <main class="page">
      <form class="panel form" aria-label="Inspection" onSubmit={(event) => { event.preventDefault(); void start(); }}>
        <div class="kicker"><Logo /><b>clipspect</b> inspection</div>
        <h1>Inspect images</h1>
        <DropBox id="images" title="Images" hint="Drop one image, several, or a folder." files={images} error={errors.images} onFiles={setImages} />
        {!profile && <><DropBox id="good" title="Known-good images" hint="Of the same object, without defects. Optional: from three on they give a verdict; ten are advised." files={good} onFiles={setGood} />
        <label for="object">Object</label>
        <input type="text" id="object" placeholder="metal nut" maxLength={MAX_NAME} value={object} aria-invalid={!!errors.object} autocomplete="off" onInput={(event) => setObject(event.currentTarget.value)} />
        {errors.object && <span class="field-error" role="alert">{errors.object}</span>}
        {objectNote && <span class="facts" id="object-note">{objectNote}</span>}
        {catalogue && <MethodChoice catalogue={catalogue} images={images.length} good={good.length} method={method} compared={compared} error={errors.method}
          onMethod={setMethod} onCompared={setCompared} />}
        {catalogue && catalogue.models.length > 1 && <>
          <label for="model">Model</label>
          <select id="model" value={model} onChange={(event) => setModel(event.currentTarget.value)}>
            {catalogue.models.map((one) => <option value={one.name} key={one.name}>{one.name}</option>)}
          </select>
        </>}
        </>}
        <ProfileChoice served={served} profile={profile} onProfile={setProfile} />
        <button type="submit" class="primary" id="inspect" disabled={progress !== null}>Inspect</button>
        {errors.form && <p class="field-error" id="form-error" role="alert">{errors.form}</p>}
        <p class="facts">Or try rendered metal brackets:</p>
        <span class="drop-buttons">
          <button type="button" class="small" id="example-one" disabled={progress !== null} onClick={() => void example("one")}>One part</button>
          <button type="button" class="small" id="example-pair" disabled={progress !== null} onClick={() => void example("pair")}>A part and a good one</button>
          <button type="button" class="small" id="example-set" disabled={progress !== null} onClick={() => void example("set")}>A set</button>
        </span>
      </form>
      <div class="output" ref={status}>
        <div id="status" role="status">
          {progress ? <ProgressBar progress={progress} onStop={() => running.current?.abort()} />
            : errors.form ? <Banner title="The images could not be inspected" kind="loud">{errors.form}</Banner>
            : said || <p class="panel welcome">Nothing inspected yet. Drop an image{profile ? "" : " and name the object"}, or press an example.</p>}
        </div>
        {state && state.rows.length > 0 && (
          <div class={progress ? "results stale" : "results"} aria-busy={progress !== null}>
            {state.rows.length === 1 && !state.report.failed ? <SingleResult state={state} /> : <><Notes state={state} /><Results state={state} /></>}
            {used && !used.profile && used.good.length >= MIN_GOOD && <SaveProfile inquiry={used} key={used.object} />}
          </div>
        )}
      </div>
    </main>
  </>;
}

function ProgressBar({ progress, onStop }: { progress: Progress; onStop: () => void }) {
  const [now, setNow] = useState(0), began = useRef(performance.now());
  useEffect(() => {
    const timer = setInterval(() => setNow((performance.now() - began.current) / 1000), 200);
    return () => clearInterval(timer);
  }, []);
  const { stage, done, total } = progress;
  return (
    <div class="progress" id="progress">
      <span>{stage[0].toUpperCase() + stage.slice(1)}{total > 0 && ` ${done} of ${total}`} · {now.toFixed(1)} s</span>
      <progress aria-label={stage} max={total || undefined} value={total ? done : undefined} />
      <button type="button" class="small" id="stop" onClick={onStop}>Stop</button>
    </div>
  );
}
