const STARTS: number[][] = [
  [0xff, 0xd8, 0xff], [0x89, 0x50, 0x4e, 0x47], [0x42, 0x4d], [0x47, 0x49, 0x46, 0x38],
  [0x49, 0x49, 0x2a, 0], [0x4d, 0x4d, 0, 0x2a], [0x49, 0x49, 0x2b, 0], [0x4d, 0x4d, 0, 0x2b], [0x52, 0x49, 0x46, 0x46],
];

/** Whether a file starts like an image; the service checks again. */
export async function isImage(file: Blob): Promise<boolean> {
  const bytes = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  return STARTS.some((start) => start.every((byte, i) => bytes[i] === byte));
}

async function within(entry: FileSystemEntry): Promise<File[]> {
  if (entry.isFile)
    return new Promise((resolve, reject) => (entry as FileSystemFileEntry).file((file) => {
      Object.defineProperty(file, "path", { value: entry.fullPath.slice(1), configurable: true });
      resolve([file]);
    }, reject));
  const reader = (entry as FileSystemDirectoryEntry).createReader(), found: FileSystemEntry[] = [];
  for (;;) {
    const part = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) break; // readEntries gives at most 100 at once
    found.push(...part);
  }
  return (await Promise.all(found.map(within))).flat();
}

/** Files of a drop. Of folders only images are taken, in the order of their paths. */
export async function droppedFiles(transfer: DataTransfer): Promise<File[]> {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const plain = [...transfer.files].filter((_, i) => entries[i]?.isFile ?? true);
  const folders = await Promise.all(entries.filter((entry) => entry.isDirectory).map(within));
  return [...plain, ...(await imagesOf(folders.flat()))];
}

export async function imagesOf(files: File[]): Promise<File[]> {
  const wanted = await Promise.all(files.map(isImage));
  return files.filter((file, i) => wanted[i] && !file.name.startsWith("."));
}
